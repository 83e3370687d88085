// The charts of the last 15 minutes, as inline SVG, and the table of the versions' shares.

const SVG = 'http://www.w3.org/2000/svg';
const COLOURS = 7;
const MARGIN = { left: 46, right: 10, top: 8, bottom: 20 };
const clock = new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit' });

/** 0.00123 -> 0.00123, 12.345 -> 12.3, 1234 -> 1,234: three digits, for people. */
export function number(value) {
  if (value === null || value === undefined) return '–';
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString('en');
  return String(Number(value.toPrecision(3)));
}

function element(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function html(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Round steps from 0 to at least `most`. */
function ticks(most, whole) {
  const rough = (most || 1) / 3;
  const size = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((times) => times * size).find((each) => each >= rough);
  if (whole) step = Math.max(1, Math.round(step));
  const found = [0];
  while (found.at(-1) < most || found.length < 2) found.push(Number((found.length * step).toPrecision(6)));
  return found;
}

/** Levels of a logarithmic scale around positive values: decades, with 2 and 5 between them if there are few. */
function decades(values) {
  const positive = values.filter((value) => value > 0);
  if (!positive.length) return [1, 10];
  const low = Math.floor(Math.log10(Math.min(...positive)));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...positive))));
  const found = [];
  for (let power = low; power <= high; power += 1) {
    for (const times of high - low < 2 && power < high ? [1, 2, 5] : [1]) found.push(Number(`${times}e${power}`));
  }
  return found;
}

/** One chart. `series` are {name, colour, dash, points}, where points are [time, value or null] in their order. */
class Chart {
  constructor(title, unit, empty, whole = false) {
    this.title = title;
    this.unit = unit;
    this.empty = empty;
    this.whole = whole;
    this.series = [];
    this.cursor = null;
    this.explains = false;
    this.logarithmic = false;
    this.legend = html('div', { className: 'legend' });
    this.svg = element('svg', { tabindex: '0', role: 'img' });
    this.figure = html('figure', { className: 'chart' },
      html('figcaption', {}, `${title} `, html('small', { textContent: unit })), this.legend, this.svg);
    this.svg.addEventListener('pointermove', (event) => this.point(event.offsetX));
    this.svg.addEventListener('pointerleave', () => this.move(null));
    this.svg.addEventListener('blur', () => this.move(null));
    this.svg.addEventListener('keydown', (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  show(series, times, range, marks) {
    Object.assign(this, { series, times, range, marks });
    this.draw();
  }

  clear() {
    this.range = null;
    this.legend.replaceChildren();
    this.svg.replaceChildren();
    this.svg.removeAttribute('aria-label');
  }

  point(x) {
    const { from, to } = this.range ?? {};
    if (!this.times?.length) return;
    const width = this.svg.clientWidth - MARGIN.left - MARGIN.right;
    const at = from + ((x - MARGIN.left) / width) * (to - from);
    this.move(this.times.reduce((best, time) => (Math.abs(time - at) < Math.abs(best - at) ? time : best)));
  }

  key(event) {
    const times = this.times ?? [];
    if (!times.length) return;
    const here = this.cursor === null ? times.length : times.indexOf(this.cursor);
    const next = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: times.length - 1, Escape: null }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    this.move(next === null ? null : times[Math.min(times.length - 1, Math.max(0, next))]);
  }

  move(time) {
    if (time === this.cursor) return;
    this.cursor = time;
    this.draw();
  }

  draw() {
    if (!this.range) return;
    const width = Math.max(120, this.svg.clientWidth);
    const height = Math.max(80, this.svg.clientHeight);
    const { from, to, step } = this.range;
    const values = this.series.flatMap((each) => each.points.map(([, value]) => value)).filter((v) => v !== null);
    const levels = this.logarithmic ? decades(values) : ticks(Math.max(0, ...values), this.whole);
    const [low, top] = [levels[0], levels.at(-1)];
    const share = this.logarithmic ? (value) => Math.log(Math.max(low, value) / low) / Math.log(top / low) : (value) => value / top;
    const x = (time) => MARGIN.left + ((time - from) / (to - from)) * (width - MARGIN.left - MARGIN.right);
    const y = (value) => height - MARGIN.bottom - share(value) * (height - MARGIN.top - MARGIN.bottom);
    const drawn = [];
    for (const level of levels) {
      drawn.push(element('line', { class: 'grid', x1: MARGIN.left, x2: width - MARGIN.right, y1: y(level), y2: y(level) }));
      drawn.push(element('text', { x: MARGIN.left - 6, y: y(level) + 4, 'text-anchor': 'end' }, number(level)));
    }
    for (const minutes of [15, 10, 5, 0]) {
      const anchor = minutes === 15 ? 'start' : minutes ? 'middle' : 'end';
      const text = minutes ? `${minutes} min${width < 400 ? '' : ' ago'}` : 'now';
      drawn.push(element('text', { x: x(to - minutes * 60), y: height - 5, 'text-anchor': anchor }, text));
    }
    for (const mark of this.marks.filter((each) => each.at > from && each.at <= to)) {
      const what = `${mark.kind} of ${mark.name} version ${mark.version}, ${clock.format(mark.at * 1000)}`;
      drawn.push(element('line', { class: `mark ${mark.kind}`, x1: x(mark.at), x2: x(mark.at), y1: MARGIN.top, y2: height - MARGIN.bottom },
        element('title', {}, what)));
    }
    for (const each of this.series) drawn.push(...lines(each, step, x, y));
    if (!values.some((value) => value > 0)) {
      drawn.push(element('text', { x: (MARGIN.left + width) / 2, y: height / 2, 'text-anchor': 'middle' }, this.empty));
    }
    if (this.cursor !== null && this.cursor >= from) {
      drawn.push(element('line', { class: 'rule', x1: x(this.cursor), x2: x(this.cursor), y1: MARGIN.top, y2: height - MARGIN.bottom }));
    }
    this.svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    this.svg.replaceChildren(...drawn);
    this.explain();
  }

  explain() {
    const at = this.cursor ?? this.times.at(-1);
    const said = this.series.map((each) => [each, each.points.find(([time]) => time === at)?.[1] ?? null]);
    this.legend.replaceChildren(
      html('span', { className: 'when', textContent: at === undefined ? '' : clock.format(at * 1000) }),
      ...said.map(([each, value]) => html('span', {},
        html('i', { className: `s${each.colour}${each.dash ? ' dash' : ''}` }), `${each.name} `, html('b', { textContent: number(value) }))));
    const kinds = new Set(this.marks.filter((mark) => mark.at > this.range.from).map((mark) => mark.kind));
    if (this.explains) {
      for (const kind of kinds) this.legend.append(html('span', {}, html('i', { className: `dash ${kind}` }), `last ${kind}`));
    }
    const words = said.map(([each, value]) => `${each.name} ${value === null ? 'none' : number(value)}`).join(', ');
    this.svg.setAttribute('aria-label', `${this.title}, ${this.unit}. ${this.cursor === null ? 'Now' : clock.format(at * 1000)}: ${words || this.empty}. Arrow keys move along.`);
  }
}

/** The lines of a series: broken where there are no points; a point alone is a dot. */
function lines(series, step, x, y) {
  const runs = [];
  let last = -Infinity;
  for (const [time, value] of series.points) {
    if (value === null) { last = -Infinity; continue; }
    if (time - last > 2.5 * step) runs.push([]);
    runs.at(-1).push([x(time).toFixed(1), y(value).toFixed(1)]);
    last = time;
  }
  const style = `s${series.colour}${series.dash ? ' dash' : ''}`;
  return runs.map((run) => (run.length === 1
    ? element('circle', { class: style, cx: run[0][0], cy: run[0][1], r: 1.5 })
    : element('path', { class: style, d: `M${run.map((pair) => pair.join(' ')).join('L')}` })));
}

/** A cell that has its column's name, for narrow screens. */
function cell(name, ...content) {
  const made = html('td', {}, ...content);
  made.dataset.name = name;
  return made;
}

const keyOf = (name, version) => JSON.stringify([name, version]);

/** All charts and the table. Keeps the points, so that the server is asked for new ones alone. */
export class Traffic {
  constructor(place, table, select) {
    this.body = table.tBodies[0];
    this.select = select;
    this.rate = new Chart('Requests', 'answered per second', 'No requests in the last 15 minutes');
    this.time = new Chart('Time', 'ms, waiting and running, logarithmic', 'No requests in the last 15 minutes');
    this.errors = new Chart('Errors', 'failed per second', 'No errors in the last 15 minutes');
    this.queue = new Chart('Queue', 'requests waiting or running', 'Nothing waits', true);
    this.time.logarithmic = true; // a p99 is often a hundred times p50
    this.rate.explains = true; // what the vertical lines are
    place.append(...[this.rate, this.time, this.errors, this.queue].map((chart) => chart.figure));
    select.addEventListener('change', () => this.draw());
    this.clear();
  }

  clear() {
    this.total = new Map();
    this.versions = new Map();
    this.models = [];
    this.marks = [];
    this.since = 0;
    this.offered = '';
    this.body.replaceChildren();
    this.select.replaceChildren(new Option('all models', ''));
    for (const chart of [this.rate, this.time, this.errors, this.queue]) chart.clear();
  }

  add(history, models, marks) {
    const { time, step_s: step, span_s: span } = history;
    this.range = { from: time - span, to: time, step };
    const slot = (point) => Math.round(point.at / step);
    const merge = (into, points) => {
      for (const point of points) into.set(slot(point), point);
      for (const [key, point] of into) if (point.at <= time - span) into.delete(key);
    };
    merge(this.total, history.total);
    // Another worker may have points of another moment: the last ones are asked for again.
    this.since = Math.max(0, ...[...this.total.values()].map((point) => point.at)) - step;
    const asked = new Map(history.models.map((each) => [keyOf(each.name, each.version), each]));
    for (const each of history.models) {
      const key = keyOf(each.name, each.version);
      if (!this.versions.has(key)) this.versions.set(key, { name: each.name, version: each.version, points: new Map() });
    }
    for (const [key, version] of this.versions) {
      const found = asked.get(key);
      merge(version.points, found?.points ?? []);
      version.answered = found?.answered ?? 0;
      version.failed = found?.failed ?? 0;
      if (!version.points.size && !found) this.versions.delete(key);
    }
    this.models = models;
    this.marks = marks;
    this.offer();
    this.draw();
  }

  /** Every version that is served or was asked. */
  known() {
    const all = new Map(this.models.map(({ name, version }) => [keyOf(name, version), { name, version, answered: 0, failed: 0, points: new Map() }]));
    for (const [key, version] of this.versions) all.set(key, version);
    return all;
  }

  offer() {
    const known = this.known();
    const offered = [...known.keys()].join();
    if (offered === this.offered) return;
    this.offered = offered;
    const chosen = this.select.value;
    this.select.replaceChildren(new Option('all models', ''),
      ...[...known].map(([key, { name, version }]) => new Option(`${name} version ${version}`, key)));
    this.select.value = known.has(chosen) ? chosen : '';
  }

  draw() {
    if (!this.range) return;
    const slots = [...this.total.keys()].sort((a, b) => a - b);
    const times = slots.map((slot) => this.total.get(slot).at);
    const known = this.known();
    const chosen = known.get(this.select.value);
    const points = chosen ? chosen.points : this.total;
    const of = (source, field, none) => slots.map((slot, i) => [times[i], source.get(slot)?.[field] ?? none]);
    const marks = this.marks.filter((mark) => !chosen || (mark.name === chosen.name && mark.version === chosen.version));
    const show = (chart, ...series) => chart.show(series, times, this.range, marks);
    show(this.rate, ...(chosen ? [{ name: `${chosen.name} ${chosen.version}`, colour: 0, points: of(points, 'rate', 0) }]
      : this.rates(known, slots, times)));
    show(this.time, { name: 'p50', colour: 0, points: of(points, 'p50_ms', null) },
      { name: 'p99', colour: 1, dash: true, points: of(points, 'p99_ms', null) });
    show(this.errors, { name: 'errors', colour: 4, points: of(points, 'errors', 0) });
    show(this.queue, { name: 'queue', colour: 2, points: of(points, 'queue', 0) });
    this.table(known, slots.at(-1));
  }

  /** A line for each of the busiest versions, one for all others. */
  rates(known, slots, times) {
    const busy = [...known.values()].filter((each) => each.points.size).sort((a, b) => b.answered - a.answered);
    if (!busy.length) return [{ name: 'all', colour: 0, points: times.map((time) => [time, 0]) }];
    const line = (versions) => slots.map((slot, i) => [times[i],
      versions.reduce((sum, each) => sum + (each.points.get(slot)?.rate ?? 0), 0)]);
    const many = busy.length > COLOURS;
    const shown = busy.slice(0, many ? COLOURS - 1 : COLOURS);
    const series = shown.map((each, i) => ({ name: `${each.name} ${each.version}`, colour: i, dash: i % 2 === 1, points: line([each]) }));
    if (many) series.push({ name: `${busy.length - shown.length} others`, colour: COLOURS - 1, points: line(busy.slice(shown.length)) });
    return series;
  }

  table(known, slot) {
    this.body.parentElement.parentElement.hidden = !known.size;
    const sum = [...known.values()].reduce((total, each) => total + each.answered, 0);
    this.body.replaceChildren(...[...known.values()].map((each) => {
      const now = each.points.get(slot);
      const share = sum ? each.answered / sum : 0;
      const bar = html('meter', { min: 0, max: 1, value: share });
      bar.setAttribute('aria-label', 'share of answered requests');
      const row = html('tr', {}, html('th', { scope: 'row', textContent: each.name }), cell('version', each.version),
        cell('share', bar, ` ${(100 * share).toFixed(share && share < 0.1 ? 1 : 0)} %`), cell('answered', number(each.answered)),
        cell('failed', number(each.failed)), cell('requests/s', number(now?.rate ?? 0)), cell('p50 ms', number(now?.p50_ms)),
        cell('p99 ms', number(now?.p99_ms)), cell('queue', number(now?.queue ?? 0)));
      return row;
    }));
  }
}

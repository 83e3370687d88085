// Try it: sends a photograph or JSON to a model's `predict`, and shows the answer, the time, and curl's line for it.
import { number } from './charts.js';

const LONGEST = 1600; // of the sides of the picture that is drawn
const MOST_VALUES = 20_000; // in an example
const PALETTE = ['#e69f00', '#56b4e9', '#00c08b', '#f0e442', '#ff7a33', '#e59bc7', '#4da3ff', '#b8e986'];
const segment = (text) => encodeURIComponent(text).replaceAll("'", '%27');
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export class TryIt {
  /** `server` has `ask(path, options)`, `errorOf(response)` and `hasKey()`. */
  constructor(section, server) {
    this.server = server;
    this.section = section;
    this.find = (id) => section.querySelector(`#${id}`);
    this.select = this.find('try-model');
    this.json = this.find('json');
    this.asked = 0;
    this.offered = '';
    this.models = [];
    this.select.addEventListener('change', () => this.choose());
    this.find('photo').addEventListener('change', (event) => this.take(event.target.files));
    this.find('json-form').addEventListener('submit', (event) => { event.preventDefault(); this.sendJson(); });
    this.find('curl-copy').addEventListener('click', () => this.copy());
    const drop = this.find('drop');
    for (const kind of ['dragenter', 'dragover']) {
      drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add('over'); });
    }
    drop.addEventListener('dragleave', () => drop.classList.remove('over'));
    drop.addEventListener('drop', (event) => {
      event.preventDefault();
      drop.classList.remove('over');
      this.take(event.dataTransfer.files);
    });
    document.addEventListener('paste', (event) => {
      if (event.clipboardData.files.length && this.model?.images) this.take(event.clipboardData.files);
    });
  }

  /** The models that are served now. */
  offer(models) {
    const offered = JSON.stringify(models.map(({ name, version, task, images, ready }) => [name, version, task, images, ready]));
    this.section.hidden = !models.length;
    if (offered === this.offered) return;
    if (!models.length) this.forget();
    this.offered = offered;
    this.models = models;
    const before = this.model && JSON.stringify([this.model.name, this.model.version]);
    this.select.replaceChildren(...models.map(({ name, version, ready }, i) =>
      new Option(`${name} version ${version}${ready ? '' : ' (not ready)'}`, String(i))));
    const kept = models.findIndex(({ name, version }) => JSON.stringify([name, version]) === before);
    const first = Math.max(0, models.findIndex(({ ready }) => ready));
    this.select.value = String(kept < 0 ? first : kept);
    if (kept < 0 || !this.json.value) this.choose(); else this.model = models[kept];
  }

  /** Keeps nothing of what was asked. */
  forget() {
    this.asked += 1;
    this.model = undefined;
    this.json.value = '';
    this.clear('The answer appears here.');
    this.find('curl').hidden = true;
    this.find('found').replaceChildren();
    this.find('raw').querySelector('pre').textContent = '';
    this.find('curl-line').textContent = '';
  }

  get path() {
    const { name, version } = this.model;
    const several = this.models.filter((each) => each.name === name).length > 1;
    return `v2/models/${segment(name)}${several ? `/versions/${segment(version)}` : ''}`;
  }

  async choose() {
    this.model = this.models[Number(this.select.value)];
    if (!this.model) return;
    this.find('drop').hidden = !this.model.images;
    const edited = this.json.value && this.json.value !== this.example;
    const { model } = this;
    let found;
    try {
      found = await this.exampleOf();
    } catch (error) {
      found = { text: '', note: error.message };
    }
    if (model !== this.model) return;
    this.find('json-note').textContent = edited ? '(yours; empty it and choose the model again for an example)' : found.note;
    if (!edited) this.json.value = found.text;
    this.example = found.text;
  }

  /** A body that the model takes, and what it is. */
  async exampleOf() {
    if (this.model.images) {
      return { text: JSON.stringify({ image: { b64: drawnPng() } }, null, 1), note: 'an example: a small PNG in base64' };
    }
    const response = await this.server.ask(this.path);
    if (!response.ok) throw new Error(await this.server.errorOf(response));
    const inputs = (await response.json()).inputs.map(({ name, datatype, shape }) => {
      const sizes = shape.map((size) => (size < 0 ? 1 : size));
      const count = sizes.reduce((product, size) => product * size, 1);
      const value = { BYTES: '', BOOL: false }[datatype] ?? 0;
      return { name, datatype, shape: sizes, data: count <= MOST_VALUES ? Array(count).fill(value) : [], count };
    });
    const large = inputs.filter((input) => !input.data.length && input.count);
    const shown = inputs.map(({ count, ...input }) => `  ${JSON.stringify(input)}`);
    return {
      text: `{"inputs": [\n${shown.join(',\n')}\n]}`,
      note: large.length ? `an example without the ${large.map((l) => `${number(l.count)} values of ${l.name}`).join(', ')}`
        : 'an example of zeros; dynamic sizes are 1',
    };
  }

  take(files) {
    const [file] = files;
    if (!file) return;
    const name = file.name || 'photo.png';
    const line = ['--data-binary', quoted(`@${name}`)];
    this.send(file, { 'Content-Type': file.type || 'application/octet-stream' }, line, file);
    this.find('photo').value = '';
  }

  sendJson() {
    const text = this.json.value;
    const compact = text.replace(/\s*\n\s*/g, ' ').trim();
    const body = compact.length <= 600 ? quoted(compact) : '@body.json';
    this.send(text, { 'Content-Type': 'application/json' }, ['-H', quoted('Content-Type: application/json'), '-d', body]);
  }

  async send(body, headers, line, file = null) {
    const mine = ++this.asked;
    const path = `${this.path}/predict`;
    this.curl(path, line);
    this.clear('Asking…');
    let response;
    let text;
    const began = performance.now();
    try {
      response = await this.server.ask(path, { method: 'POST', headers, body });
      text = await response.clone().text();
    } catch (error) {
      if (mine === this.asked) this.clear(`The server did not answer: ${error.message}`, true);
      return;
    }
    const took = performance.now() - began;
    if (mine !== this.asked) return;
    if (!response.ok) {
      this.clear(`${response.status}: ${await this.server.errorOf(response)}`, true);
      return;
    }
    let answer;
    try { answer = JSON.parse(text); } catch { this.clear(`The answer is not JSON: ${text.slice(0, 200)}`, true); return; }
    const about = answer.parameters ?? {};
    const where = [response.headers.get('x-edgeserve-device') ?? about.edgeserve_device, about.edgeserve_variant, about.edgeserve_runtime];
    this.clear(`Answered in ${number(took)} ms (as this browser sees it) by ${where.filter(Boolean).join(', ')}, version ${answer.model_version ?? this.model.version}.`);
    const raw = this.find('raw');
    raw.hidden = false;
    raw.querySelector('pre').textContent = JSON.stringify(shortened(answer), null, 1);
    raw.open = false;
    await this.show(answer, file, mine);
  }

  clear(text, bad = false) {
    const said = this.find('try-said');
    said.textContent = text;
    said.className = bad ? 'bad' : '';
    for (const id of ['picture', 'found', 'raw']) this.find(id).hidden = true;
  }

  async show(answer, file, mine) {
    let picture = null;
    if (file) {
      try {
        picture = await createImageBitmap(file, { imageOrientation: 'from-image' });
      } catch { /* a format that this browser does not know: the answer is shown without it */ }
    }
    const mask = answer.mask && await classesOf(answer.mask.png);
    if (mine !== this.asked) return;
    const canvas = this.find('picture');
    const width = picture?.width ?? answer.mask?.width;
    const height = picture?.height ?? answer.mask?.height;
    if (width) {
      const scale = Math.min(1, LONGEST / Math.max(width, height));
      canvas.width = Math.max(1, Math.round(width * scale));
      canvas.height = Math.max(1, Math.round(height * scale));
      const pen = canvas.getContext('2d');
      if (picture) pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
      if (mask) overlay(pen, mask);
      if (answer.boxes) boxes(pen, answer.boxes, scale);
      canvas.setAttribute('role', 'img');
      canvas.setAttribute('aria-label', answer.boxes ? `The photograph with ${answer.boxes.length} boxes` : 'The photograph');
      canvas.hidden = false;
    }
    const scored = answer.classes ?? answer.boxes ?? answer.mask?.classes;
    const painted = answer.mask ? (index) => (index ? colourOf(index) : 'transparent') : colourOf;
    if (scored) this.list(scored, answer.classes ? null : painted);
    else this.find('raw').open = true;
  }

  list(scored, colour) {
    const list = this.find('found');
    list.hidden = false;
    list.replaceChildren(...(scored.length ? scored.map((each) => {
      const name = document.createElement('span');
      if (colour) {
        const swatch = document.createElement('span');
        swatch.className = 'swatch';
        swatch.style.color = colour(each.index);
        name.append(swatch);
      }
      name.append(each.label);
      const bar = Object.assign(document.createElement('meter'), { min: 0, max: 1, value: each.score ?? 0 });
      bar.setAttribute('aria-hidden', 'true');
      const score = Object.assign(document.createElement('span'), { className: 'n', textContent: each.score > 0 && each.score < 0.001 ? '< 0.001' : number(each.score) });
      const item = document.createElement('li');
      item.append(name, bar, score);
      return item;
    }) : [Object.assign(document.createElement('li'), { textContent: 'Nothing was found.' })]));
  }

  curl(path, line) {
    const key = this.server.hasKey() ? ['-H', '"Authorization: Bearer $EDGESERVE_API_KEY"'] : [];
    this.find('curl').hidden = false;
    this.find('curl-line').textContent = ['curl', ...key, ...line, quoted(new URL(path, document.baseURI).href)].join(' ');
  }

  async copy() {
    const line = this.find('curl-line');
    const button = this.find('curl-copy');
    try {
      await navigator.clipboard.writeText(line.textContent); // only over HTTPS and on this machine
      button.textContent = 'Copied';
    } catch {
      getSelection().selectAllChildren(line);
      button.textContent = 'Selected: press Ctrl+C';
    }
    setTimeout(() => { button.textContent = 'Copy'; }, 3000);
  }
}

const colourOf = (index) => PALETTE[((index % PALETTE.length) + PALETTE.length) % PALETTE.length];

function boxes(pen, found, scale) {
  const size = Math.max(12, Math.round(pen.canvas.width / 45));
  pen.font = `${size}px system-ui, sans-serif`;
  pen.lineWidth = Math.max(2, size / 7);
  pen.textBaseline = 'top';
  for (const { label, score, index, box } of [...found].reverse()) {
    const [x0, y0, x1, y1] = box.map((value) => value * scale);
    pen.strokeStyle = colourOf(index);
    pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
    const text = `${label} ${number(score)}`;
    const top = y0 >= size * 1.4 ? y0 - size * 1.4 : Math.max(0, y0);
    const left = Math.max(0, Math.min(x0, pen.canvas.width - pen.measureText(text).width - 8));
    pen.fillStyle = colourOf(index);
    pen.fillRect(left, top, pen.measureText(text).width + 8, size * 1.4);
    pen.fillStyle = '#000';
    pen.fillText(text, left + 4, top + size * 0.2);
  }
}

/** The classes of a mask's pixels. */
async function classesOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const picture = await createImageBitmap(new Blob([bytes], { type: 'image/png' }), { colorSpaceConversion: 'none' });
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const pen = canvas.getContext('2d');
  pen.drawImage(picture, 0, 0);
  return pen.getImageData(0, 0, picture.width, picture.height);
}

/** Paints each class but 0 over the picture. */
function overlay(pen, mask) {
  const { data } = mask;
  for (let i = 0; i < data.length; i += 4) {
    const index = data[i];
    const colour = Number.parseInt(colourOf(index).slice(1), 16);
    data[i] = colour >> 16;
    data[i + 1] = (colour >> 8) & 255;
    data[i + 2] = colour & 255;
    data[i + 3] = index ? 150 : 0;
  }
  const layer = new OffscreenCanvas(mask.width, mask.height);
  layer.getContext('2d').putImageData(mask, 0, 0);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(layer, 0, 0, pen.canvas.width, pen.canvas.height);
  pen.imageSmoothingEnabled = true;
}

/** A small picture, as PNG in base64. */
function drawnPng() {
  const canvas = Object.assign(document.createElement('canvas'), { width: 16, height: 16 });
  const pen = canvas.getContext('2d');
  pen.fillStyle = '#c33';
  pen.fillRect(0, 0, 16, 16);
  pen.fillStyle = '#36c';
  pen.fillRect(4, 4, 8, 8);
  return canvas.toDataURL('image/png').split(',')[1];
}

/** JSON for reading: long texts and lists are cut. */
function shortened(value) {
  if (typeof value === 'string') return value.length > 200 ? `${value.slice(0, 80)}… (${value.length} characters)` : value;
  if (Array.isArray(value)) {
    const cut = value.slice(0, 200).map(shortened);
    return value.length > 200 ? [...cut, `… ${value.length - 200} more`] : cut;
  }
  if (value && typeof value === 'object') return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, shortened(v)]));
  return value;
}

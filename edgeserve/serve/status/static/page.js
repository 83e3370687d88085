// The status page: asks the server every 5 s, shows what it says, and keeps the key, if one is needed, in this tab.
import { Traffic } from './charts.js';
import { TryIt } from './try.js';

const POLL_MS = 5000;
const KEPT = 'edgeserve-key';
const find = (id) => document.getElementById(id);
const notice = find('notice');
const keyForm = find('key-form');

/** Asks this server, with the key if there is one. */
function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  const key = sessionStorage.getItem(KEPT);
  if (key) headers.set('Authorization', `Bearer ${key}`);
  return fetch(path, { ...options, headers, cache: 'no-store', credentials: 'same-origin', redirect: 'error' });
}

/** The text of an answer's error: the server's own words, whichever protocol wrote them. */
async function errorOf(response) {
  const text = await response.text();
  try {
    const found = JSON.parse(text);
    const said = found.error ?? found.message ?? found.detail;
    if (typeof said === 'string') return said;
  } catch { /* it is no JSON */ }
  return text.slice(0, 2000) || `HTTP ${response.status}`;
}

const hasKey = () => keyForm.dataset.needed === 'yes';

const traffic = new Traffic(find('charts'), find('versions'), find('of'));
const tryIt = new TryIt(find('try'), { ask, errorOf, hasKey });
let failures = 0;
let timer = 0;

function say(text) {
  if (notice.textContent !== text) notice.textContent = text;
  notice.hidden = !text;
}

/** Puts new content in the place of the old, but not under somebody's hands. */
function replace(fresh, id) {
  const old = find(id);
  const now = fresh.getElementById(id);
  if (!now || old.isEqualNode(now)) return;
  const selected = getSelection();
  if (selected && !selected.isCollapsed && old.contains(selected.anchorNode)) return;
  old.replaceWith(document.adoptNode(now));
}

async function refresh() {
  const key = sessionStorage.getItem(KEPT);
  const [live, history] = await Promise.all([ask('status/live'), ask(`status/history?since=${traffic.since}`)]);
  if (live.status === 401 || history.status === 401) {
    needKey(await errorOf(live.status === 401 ? live : history));
    return;
  }
  if (!live.ok) throw new Error(await errorOf(live));
  if (!history.ok) throw new Error(await errorOf(history));
  const [text, points] = [await live.text(), await history.json()];
  if (key !== sessionStorage.getItem(KEPT)) return; // it was changed meanwhile
  const fresh = new DOMParser().parseFromString(text, 'text/html');
  replace(fresh, 'live-head');
  replace(fresh, 'live-models');
  document.title = `edgeserve: ${find('live-head').dataset.word}`;
  keyForm.hidden = keyForm.dataset.needed !== 'yes' && !sessionStorage.getItem(KEPT);
  find('key-help').hidden = true;
  find('main').hidden = false;
  find('traffic').hidden = false;
  const models = [...document.querySelectorAll('#live-models > article')].map((card) => ({ ...card.dataset }));
  const marks = [...document.querySelectorAll('#live-models time[data-mark]')].map((at) => ({
    kind: at.dataset.mark, at: Number(at.dataset.at),
    name: at.closest('article').dataset.name, version: at.closest('article').dataset.version,
  }));
  traffic.add(points, models, marks);
  tryIt.offer(models);
  failures = 0;
  say('');
}

function needKey(why) {
  keyForm.dataset.needed = 'yes';
  keyForm.hidden = false;
  find('key-help').hidden = false;
  find('main').hidden = true;
  find('live-head').replaceChildren(Object.assign(document.createElement('h1'), { textContent: 'edgeserve' }));
  find('live-models').replaceChildren();
  traffic.clear();
  tryIt.offer([]);
  document.title = 'edgeserve';
  say(sessionStorage.getItem(KEPT) ? `The key is refused: ${why}` : '');
}

async function poll() {
  clearTimeout(timer);
  if (!document.hidden) {
    try {
      await refresh();
    } catch (error) {
      failures += 1;
      say(`The server does not answer (${failures} in a row): ${error.message}. What is shown is old.`);
    }
  }
  clearTimeout(timer);
  timer = setTimeout(poll, POLL_MS);
}

keyForm.addEventListener('submit', (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEPT, find('key').value.trim());
  find('key').value = '';
  keyForm.dataset.needed = 'yes';
  poll();
});
find('key-forget').addEventListener('click', () => {
  sessionStorage.removeItem(KEPT);
  poll();
});
document.addEventListener('visibilitychange', () => { if (!document.hidden) poll(); });
poll();

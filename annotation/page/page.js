// The page: what the server knows is shown, what a person draws is sent after every stroke.
import { Drawing } from './drawing.js';

const FRAMES_HELD = 24;
const LOST = '#ff6b57';
const $ = (id) => document.getElementById(id);
const stage = $('stage'), scene = $('scene'), preview = $('preview'), cursor = $('cursor'), timeline = $('timeline');

let video = null; // what GET /video said: the frames, which do not change
let state = null; // what GET /state said last
let drawing = null;
let frame = 0, revision = 0, source = 'none';
let tool = 'brush', chosen = 0;
let view = { scale: 1, x: 0, y: 0 };
let gesture = null; // the pointer's stroke, box or move in progress
let corners = []; // of the polygon in progress
let line = []; // from its last corner to the pointer, along a border (magnetic)
let following = null, aim = null; // the request for that line, and where it is wanted next
let adding = Promise.resolve(); // the corners that were clicked and wait for their lines
let playing = false, loading = 0, shown = false; // `shown`: the frame's mask is there and may be drawn on
const confidence = new Map(); // object id to a sparse array of [value, lost] by frame
let seen = 0; // confidence rows that have been read
const pictures = new Map(); // frame number to a promise of its picture

// --- the server ---
async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { 'X-Annotation': '1', ...options.headers } })
    .catch(() => { throw new Error('the command that serves this page does not answer; start it again'); });
  if (!answer.ok) {
    const { error } = await answer.json().catch(() => ({ error: answer.statusText }));
    throw Object.assign(new Error(error), { status: answer.status });
  }
  return answer;
}

const squeeze = async (bytes) => new Uint8Array(await new Response(
  new Blob([bytes]).stream().pipeThrough(new CompressionStream('deflate'))).arrayBuffer());
const inflate = async (answer) => new Uint8Array(await new Response(
  answer.body.pipeThrough(new DecompressionStream('deflate'))).arrayBuffer());

function say(words) { $('message').textContent = words; }

async function attempt(work) {
  try { say(''); return await work(); } catch (error) { say(error.message); return null; }
}

// --- saving: one request at a time, the newest mask of a frame wins ---
let unsaved = null, saving = null;

function save() {
  unsaved = { frame, ids: drawing.ids.slice() };
  return send();
}

function send() {
  $('saved').textContent = 'saving…';
  saving ??= sendAll().finally(() => { saving = null; refresh(); });
  return saving;
}

async function sendAll() {
  while (unsaved) {
    const { frame: number, ids } = unsaved;
    unsaved = null;
    try {
      const answer = await ask(`frames/${number}/mask`, {
        method: 'PUT', body: await squeeze(ids), headers: { 'X-Revision': String(revision) } });
      revision = (await answer.json()).revision;
      source = 'given';
      $('saved').textContent = 'saved';
    } catch (error) {
      $('saved').textContent = 'not saved';
      say(error.status === 409 ? 'This frame was changed elsewhere; here is how it is now.' : `Not saved: ${error.message}`);
      if (error.status === 409) show(frame, true); // once this is over
      if (error.status) continue;
      unsaved ??= { frame: number, ids }; // until the server answers again
      return;
    }
  }
}

// --- frames ---
function picture(number) {
  if (!pictures.has(number)) {
    const made = ask(`frames/${number}.jpg`).then((answer) => answer.blob()).then(createImageBitmap);
    made.catch(() => pictures.delete(number));
    pictures.set(number, made);
    while (pictures.size > FRAMES_HELD) pictures.delete(pictures.keys().next().value);
  }
  return pictures.get(number);
}

function setShown(value) {
  shown = value;
  stage.toggleAttribute('data-shown', value);
}

async function show(number, again = false) {
  number = Math.max(0, Math.min(video.frames - 1, number));
  if (number === frame && shown && !again) return;
  if (saving) await saving;
  if (unsaved) return;
  const turn = ++loading;
  setShown(false);
  frame = number;
  dropCorners();
  drawTime();
  await attempt(async () => {
    const [image, mask] = await Promise.all([picture(number), ask(`frames/${number}/mask`)]);
    const ids = await inflate(mask);
    if (turn !== loading) return;
    revision = Number(mask.headers.get('X-Revision'));
    source = mask.headers.get('X-Source');
    $('picture').getContext('2d').drawImage(image, 0, 0);
    drawing.load(ids);
    setShown(true);
    drawButtons();
    for (const next of [number + 1, number + 2, number - 1]) if (next >= 0 && next < video.frames) picture(next).catch(() => {});
  });
}

async function play() {
  playing = !playing;
  $('play').textContent = playing ? 'Pause' : 'Play';
  while (playing) {
    const due = performance.now() + 1000 / video.rate;
    if (frame >= video.frames - 1) break;
    await show(frame + 1);
    await new Promise((done) => setTimeout(done, Math.max(0, due - performance.now())));
  }
  playing = false;
  $('play').textContent = 'Play';
}

function nextDoubtful() {
  const next = state.doubtful.find((number) => number > frame) ?? state.doubtful[0];
  if (next === undefined) say('No frame is doubtful.');
  else show(next);
}

// --- state ---
async function refresh() {
  const answer = await ask(`state?since=${seen}&frame=${frame}`).catch((error) => say(error.message));
  if (!answer) return;
  const before = state, asked = Number(new URL(answer.url).searchParams.get('frame'));
  state = await answer.json();
  for (const [number, id, value, lost] of state.rows) {
    if (!confidence.has(id)) confidence.set(id, []);
    confidence.get(id)[number] = [value, lost];
  }
  seen = Math.max(seen, state.rows_before + state.rows.length);
  if (state.error) say(state.error);
  drawing?.setColors(new Map(Object.entries(state.objects).filter(([, one]) => one.visible)
    .map(([id, one]) => [Number(id), [1, 3, 5].map((at) => parseInt(one.color.slice(at, at + 2), 16))])));
  if (!state.objects[chosen]) chosen = Number(Object.keys(state.objects)[0] ?? 0);
  if (JSON.stringify(before?.objects) !== JSON.stringify(state.objects)) drawObjects();
  drawProgress();
  drawTimeline();
  drawButtons();
  $('command').value = state.command;
  const current = asked === frame && shown && !saving && !gesture;
  if (current && state.revision > revision && source !== 'given') await show(frame, true);
}

async function poll() {
  if (unsaved) await send();
  await refresh();
  setTimeout(poll, state?.carrying || state?.model !== 'ready' ? 400 : 1500);
}

// --- what is shown of it ---
function drawObjects() {
  $('objects').replaceChildren(...Object.entries(state.objects).map(([id, one]) => {
    const item = document.createElement('li');
    item.dataset.id = id;
    item.classList.toggle('chosen', Number(id) === chosen);
    item.addEventListener('pointerdown', () => choose(Number(id)));
    const color = Object.assign(document.createElement('input'), { type: 'color', value: one.color, title: 'Colour' });
    color.addEventListener('change', () => changeObject(id, { color: color.value }));
    const name = Object.assign(document.createElement('input'), { type: 'text', value: one.name, title: `Object ${id}` });
    name.addEventListener('change', () => changeObject(id, { name: name.value }));
    const eye = Object.assign(document.createElement('button'), { textContent: one.visible ? 'shown' : 'hidden', title: 'Show or hide (V)' });
    eye.addEventListener('click', () => changeObject(id, { visible: !one.visible }));
    const remove = Object.assign(document.createElement('button'), { textContent: '×', title: 'Delete the object everywhere' });
    remove.addEventListener('click', () => deleteObject(id, one.name));
    item.append(color, name, eye, remove);
    return item;
  }));
}

function drawProgress() {
  const carrying = state.carrying;
  $('progress').hidden = $('stop').hidden = !carrying;
  for (const button of document.querySelectorAll('#carry button')) button.disabled = Boolean(carrying) || state.model !== 'ready';
  if (carrying) {
    $('progress').value = carrying.done / carrying.total;
    const left = carrying.seconds_left;
    $('progress-words').textContent = `${carrying.done} of ${carrying.total} frames`
      + (left === null ? '' : `, ${left < 90 ? `${Math.round(left)} s` : `${Math.round(left / 60)} min`} left`);
  } else {
    $('progress-words').textContent = state.model === 'ready' ? advice() : `${advice()} (${state.model})`;
  }
}

/** What to do next. */
function advice() {
  if (!state.given.length) return 'First put a box around an object (Box), or paint it (Brush).';
  if (!state.results.length) return 'Now carry the mask through the video.';
  if (state.doubtful.length) return 'Look at the doubtful frames (D), correct one, and carry again.';
  return '';
}

function drawButtons() {
  $('doubtful').disabled = !state?.doubtful.length;
  $('undo').disabled = !drawing?.done.length;
  $('redo').disabled = !drawing?.undone.length;
  $('withdraw').disabled = source !== 'given';
  for (const button of document.querySelectorAll('[data-tool]')) button.classList.toggle('chosen', button.dataset.tool === tool);
  for (const item of $('objects').children) item.classList.toggle('chosen', Number(item.dataset.id) === chosen);
}

function drawTime() {
  $('slider').value = frame;
  $('time').textContent = `frame ${frame} of ${video.frames - 1}, ${video.times[frame].toFixed(2)} s`;
  drawTimeline();
}

function drawTimeline() {
  const ids = Object.keys(state.objects).map(Number), row = 22, width = timeline.clientWidth || 600;
  const height = 12 + row * Math.max(1, ids.length), ratio = devicePixelRatio || 1;
  timeline.width = width * ratio;
  timeline.height = height * ratio;
  timeline.style.height = `${height}px`;
  const g = timeline.getContext('2d'), step = width / video.frames, x = (number) => (number + 0.5) * step;
  g.scale(ratio, ratio);
  g.fillStyle = '#3a3f45';
  for (const [start, stop] of state.results) g.fillRect(start * step, 2, Math.max(1, (stop - start) * step), 6);
  g.fillStyle = '#4da3ff';
  for (const number of state.given) g.fillRect(x(number) - 2, 0, 4, 10);
  ids.forEach((id, i) => {
    const top = 12 + i * row, rows = confidence.get(id) ?? [], high = row - 4;
    g.fillStyle = '#15161a';
    g.fillRect(0, top, width, row - 2);
    rows.forEach(([value, lost], number) => {
      const tall = Math.max(1, high * Math.max(0, Math.min(1, value)));
      g.fillStyle = state.objects[id].color;
      g.fillRect(number * step, top + row - 2 - tall, Math.max(1, step), tall);
      g.fillStyle = lost ? LOST : '#c8ccd2';
      g.fillRect(number * step, top + row - 3 - tall, Math.max(1, step), 2);
    });
  });
  g.fillStyle = LOST;
  for (const number of state.doubtful) {
    g.beginPath();
    for (const [right, down] of [[-5, 0], [5, 0], [0, 10]]) g.lineTo(x(number) + right, down);
    g.fill();
  }
  g.fillStyle = '#fff';
  g.fillRect(x(frame) - 0.5, 0, 1, height);
}

function drawPreview() {
  const g = preview.getContext('2d');
  g.clearRect(0, 0, preview.width, preview.height);
  g.lineWidth = 2 / view.scale;
  g.strokeStyle = '#fff';
  if (corners.length) {
    g.beginPath();
    [...corners, ...line].forEach(([x, y]) => g.lineTo(x, y));
    if (gesture?.at) g.lineTo(...gesture.at);
    g.stroke();
    for (const [x, y, between] of corners) if (!between) g.strokeRect(x - 2 / view.scale, y - 2 / view.scale, 4 / view.scale, 4 / view.scale);
  }
  if (gesture?.kind === 'box') g.strokeRect(...boxOf(gesture));
  if (gesture?.kind === 'scribble') {
    g.strokeStyle = gesture.outside ? '#ff5252' : '#69f0ae';
    g.lineWidth = Math.max(2, radius());
    g.lineCap = g.lineJoin = 'round';
    g.beginPath();
    gesture.points.forEach(([x, y]) => g.lineTo(x, y));
    g.stroke();
  }
}

// --- zoom ---
function place() {
  scene.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  scene.style.imageRendering = view.scale > 3 ? 'pixelated' : 'auto';
}

function fit() {
  const { clientWidth: width, clientHeight: height } = stage;
  view.scale = Math.min(width / video.width, height / video.height) * 0.97;
  view.x = (width - video.width * view.scale) / 2;
  view.y = (height - video.height * view.scale) / 2;
  place();
}

function zoom(factor, x, y) {
  const scale = Math.max(0.05, Math.min(40, view.scale * factor));
  view = { scale, x: x - (x - view.x) * scale / view.scale, y: y - (y - view.y) * scale / view.scale };
  place();
  drawPreview();
}

// --- drawing ---
const radius = () => Number($('size').value) / 2;
const boxOf = ({ from, at }) => [Math.min(from[0], at[0]), Math.min(from[1], at[1]), Math.abs(at[0] - from[0]), Math.abs(at[1] - from[1])];

function position(event) {
  const area = stage.getBoundingClientRect();
  return [(event.clientX - area.left - view.x) / view.scale, (event.clientY - area.top - view.y) / view.scale];
}

async function ready() {
  if (!shown) return false;
  if (!chosen) await addObject();
  return chosen > 0;
}

stage.addEventListener('pointerdown', async (event) => {
  const at = position(event), pen = event.pointerType === 'pen' && (event.buttons & 32);
  stage.setPointerCapture(event.pointerId);
  if (tool === 'pan' || event.button === 1) { gesture = { kind: 'pan', x: event.clientX - view.x, y: event.clientY - view.y }; return; }
  if (event.button !== 0 && !pen) return;
  if (!await ready()) return;
  if (tool === 'polygon' || tool === 'magnetic') return addCorner(at);
  if (tool === 'box') gesture = { kind: 'box', from: at, at };
  else if (tool === 'scribble') gesture = { kind: 'scribble', points: [at], outside: event.altKey };
  else {
    gesture = { kind: 'stroke', last: at, erase: tool === 'eraser' || Boolean(pen) };
    drawing.begin();
    drawing.stroke(...at, ...at, radius(), chosen, gesture.erase);
  }
});

stage.addEventListener('pointermove', (event) => {
  moveCursor(event);
  if (!gesture) {
    if (corners.length && tool === 'magnetic') follow(position(event));
    else if (corners.length) { gesture = { at: position(event) }; drawPreview(); gesture = null; }
    return;
  }
  if (gesture.kind === 'pan') { view.x = event.clientX - gesture.x; view.y = event.clientY - gesture.y; place(); return; }
  for (const one of event.getCoalescedEvents?.() ?? [event]) {
    const at = position(one);
    if (gesture.kind === 'stroke') { drawing.stroke(...gesture.last, ...at, radius(), chosen, gesture.erase); gesture.last = at; }
    if (gesture.kind === 'box') gesture.at = at;
    if (gesture.kind === 'scribble') gesture.points.push(at);
  }
  if (gesture.kind !== 'stroke') drawPreview();
});

async function endGesture() {
  const done = gesture;
  gesture = null;
  drawPreview();
  if (done?.kind === 'stroke') save();
  if (done?.kind === 'box') {
    const box = boxOf(done).map(Math.round);
    if (box[2] > 2 && box[3] > 2) await cut(`?box=${box.join(',')}`);
  }
  if (done?.kind === 'scribble') await cut('', scribbled(done));
  drawButtons();
}

stage.addEventListener('pointerup', endGesture);
stage.addEventListener('pointercancel', endGesture);

/** Three masks for the server: the object so far, what is it for certain, and what is not. */
function scribbled({ points, outside }) {
  const size = video.width * video.height, body = new Uint8Array(3 * size), canvas = document.createElement('canvas');
  const own = new Drawing(canvas, video.width, video.height);
  points.forEach((at, i) => own.stroke(...(points[i - 1] ?? at), ...at, Math.max(1, radius() / 2), 1, false));
  for (let at = 0; at < size; at++) if (drawing.ids[at] === chosen) body[at] = 1;
  body.set(own.ids, outside ? 2 * size : size);
  return body;
}

async function cut(query, body) {
  const number = frame;
  $('saved').textContent = 'finding the outline…';
  await attempt(async () => {
    const answer = await ask(`frames/${number}/cut${query}`, { method: 'POST', body: body ? await squeeze(body) : undefined });
    const own = await inflate(answer);
    if (number !== frame) return;
    drawing.begin();
    drawing.replace(chosen, own);
    await save();
  });
  if ($('saved').textContent.startsWith('finding')) $('saved').textContent = 'saved';
}

/** Corners come one after the other, however fast they are clicked; one of a polygon that was dropped goes with it. */
function addCorner(at) {
  const own = corners;
  adding = adding.then(() => takeCorner(at, own));
  return adding;
}

async function takeCorner(at, own) {
  if (corners !== own) return undefined;
  const closes = corners.length > 2 && Math.hypot(at[0] - corners[0][0], at[1] - corners[0][1]) * view.scale < 9;
  if (tool === 'magnetic' && corners.length) {
    const between = await lineTo(closes ? corners[0] : at);
    if (corners !== own) return undefined;
    corners.push(...between.map(([x, y]) => [x, y, true]));
    line = [];
  }
  if (closes) return endPolygon();
  corners.push(at);
  return drawPreview();
}

/** The line along a border from the last corner to a place. */
async function lineTo(at) {
  const ends = [corners.at(-1), at].map(([x, y]) => `${Math.floor(x)},${Math.floor(y)}`);
  const answer = await ask(`frames/${frame}/line?from=${ends[0]}&to=${ends[1]}`).catch((error) => say(error.message));
  return answer ? (await answer.json()).map(([x, y]) => [x + 0.5, y + 0.5]) : [];
}

/** Show the line to a place; while one is on its way only the newest place counts. */
function follow(at) {
  aim = at;
  following ??= (async () => {
    while (aim && corners.length) {
      const to = aim, from = corners.at(-1);
      aim = null;
      const between = await lineTo(to);
      line = from === corners.at(-1) ? between : [];
      drawPreview();
    }
  })().finally(() => { following = null; });
}

function dropCorners() {
  corners = [];
  line = [];
  aim = null;
  drawPreview();
}

function endPolygon() {
  if (corners.length > 2) { drawing.begin(); drawing.polygon(corners, chosen); save(); }
  dropCorners();
  drawButtons();
}

function moveCursor(event) {
  const round = ['brush', 'eraser', 'scribble'].includes(tool), across = 2 * radius() * view.scale, area = stage.getBoundingClientRect();
  Object.assign(cursor.style, { display: round ? 'block' : 'none', width: `${across}px`, height: `${across}px`,
    left: `${event.clientX - area.left - across / 2}px`, top: `${event.clientY - area.top - across / 2}px` });
}

// --- what can be asked for ---
function choose(id) { chosen = id; drawButtons(); }

async function addObject() {
  const answer = await attempt(() => ask('objects', { method: 'POST' }));
  if (!answer) return;
  chosen = (await answer.json()).id;
  await refresh();
}

async function changeObject(id, change) {
  await attempt(() => ask(`objects/${id}`, { method: 'PATCH', body: JSON.stringify(change) }));
  await refresh();
}

async function deleteObject(id, name) {
  if (!confirm(`Delete ${name} and its pixels in every frame?`)) return;
  await attempt(() => ask(`objects/${id}`, { method: 'DELETE' }));
  await refresh();
  await show(frame, true);
}

async function carry(direction) {
  if (saving) await saving;
  await attempt(() => ask('carry', { method: 'POST', body: JSON.stringify({ direction }) }));
  await refresh();
}

async function withdraw() {
  if (source !== 'given') return;
  await attempt(() => ask(`frames/${frame}/mask`, { method: 'DELETE', headers: { 'X-Revision': String(revision) } }));
  await show(frame, true);
  await refresh();
}

function step(back) { if (shown && (back ? drawing.undo() : drawing.redo())) { save(); drawButtons(); } }

function setTool(name) { tool = name; dropCorners(); drawButtons(); cursor.style.display = 'none'; }

function resizeBrush(factor) {
  $('size').value = Math.max(1, Math.round(Number($('size').value) * factor + (factor > 1 ? 1 : -1)));
  $('size-value').textContent = $('size').value;
}

async function download(format) {
  const answer = await attempt(() => ask('exports', { method: 'POST', body: JSON.stringify({ format }) }));
  if (!answer) return;
  const name = answer.headers.get('Content-Disposition').match(/"(.+)"/)[1];
  const link = Object.assign(document.createElement('a'), { href: URL.createObjectURL(await answer.blob()), download: name });
  link.click();
  say(`${name} was saved by the browser and is in the exports folder of the results.`);
}

const KEYS = {
  b: () => setTool('brush'), e: () => setTool('eraser'), p: () => setTool('polygon'), g: () => setTool('box'),
  s: () => setTool('scribble'), m: () => setTool('magnetic'), h: () => setTool('pan'), '[': () => resizeBrush(0.85), ']': () => resizeBrush(1.15),
  n: addObject, v: () => chosen && changeObject(chosen, { visible: !state.objects[chosen].visible }),
  ArrowLeft: (event) => show(frame - (event.shiftKey ? 10 : 1)), ArrowRight: (event) => show(frame + (event.shiftKey ? 10 : 1)),
  Home: () => show(0), End: () => show(video.frames - 1), ' ': play, d: nextDoubtful, Backspace: withdraw,
  Enter: (event) => (event.ctrlKey ? carry('both') : tool === 'magnetic' && corners.length > 2 ? addCorner(corners[0]) : endPolygon()),
  Escape: () => { if (corners.length) dropCorners(); else if (state.carrying) ask('carry', { method: 'DELETE' }); },
  c: () => carry('forward'), C: () => carry('backward'), 0: fit, '?': () => $('help').showModal(),
  '+': () => zoom(1.25, stage.clientWidth / 2, stage.clientHeight / 2), '-': () => zoom(0.8, stage.clientWidth / 2, stage.clientHeight / 2),
};

document.addEventListener('keydown', (event) => {
  if (event.target.matches('input[type=text], textarea') || $('help').open) return;
  const key = event.key;
  if ((event.ctrlKey || event.metaKey) && 'zy'.includes(key.toLowerCase())) {
    step(key.toLowerCase() === 'z' && !event.shiftKey);
  } else if ((event.ctrlKey || event.metaKey || event.altKey) && key !== 'Enter') {
    return;
  } else if (/^[1-9]$/.test(key)) {
    const id = Object.keys(state.objects)[Number(key) - 1];
    if (id) choose(Number(id));
  } else if (KEYS[key]) {
    KEYS[key](event);
  } else {
    return;
  }
  event.preventDefault();
});

// --- start ---
for (const button of document.querySelectorAll('[data-tool]')) button.addEventListener('click', () => setTool(button.dataset.tool));
for (const button of document.querySelectorAll('[data-direction]')) button.addEventListener('click', () => carry(button.dataset.direction));
for (const [id, action] of Object.entries({ undo: () => step(true), redo: () => step(false), withdraw, fit, add: addObject, play,
  doubtful: nextDoubtful, stop: () => ask('carry', { method: 'DELETE' }), 'help-button': () => $('help').showModal() })) {
  $(id).addEventListener('click', (event) => { event.currentTarget.blur(); action(); });
}
$('slider').addEventListener('input', () => show(Number($('slider').value)));
$('size').addEventListener('input', () => { $('size-value').textContent = $('size').value; });
timeline.addEventListener('pointerdown', (event) => show(Math.floor(event.offsetX / timeline.clientWidth * video.frames)));
stage.addEventListener('wheel', (event) => {
  event.preventDefault();
  const area = stage.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY / 500), event.clientX - area.left, event.clientY - area.top);
}, { passive: false });
stage.addEventListener('pointerleave', () => { cursor.style.display = 'none'; });
addEventListener('resize', () => { fit(); drawTimeline(); });
addEventListener('beforeunload', (event) => { if (unsaved || saving) event.preventDefault(); });

video = await (await ask('video')).json();
for (const canvas of [$('picture'), preview]) { canvas.width = video.width; canvas.height = video.height; }
drawing = new Drawing($('mask'), video.width, video.height);
await refresh();
scene.style.width = `${video.width}px`;
scene.style.height = `${video.height}px`;
document.title = $('name').textContent = video.name;
$('slider').max = video.frames - 1;
$('size-value').textContent = $('size').value;
for (const format of video.formats) {
  const button = Object.assign(document.createElement('button'), { textContent: format });
  button.dataset.format = format;
  button.addEventListener('click', () => download(format));
  $('exports').append(button);
}
fit();
drawObjects();
await show(0, true);
poll();

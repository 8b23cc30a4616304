// The mask of one frame as it is drawn: an array of object ids behind a canvas, with undo.

const STEPS_KEPT = 40;

export class Drawing {
  /** ids: Uint8Array of width*height, 0 is background; canvas shows them in the objects' colours. */
  constructor(canvas, width, height) {
    this.width = canvas.width = width;
    this.height = canvas.height = height;
    this.context = canvas.getContext('2d');
    this.ids = new Uint8Array(width * height);
    this.colors = new Map(); // id to [r, g, b] of the objects that are shown
    this.undone = [];
    this.done = [];
  }

  /** Show another mask; there is nothing to undo in it. */
  load(ids) {
    this.ids = ids;
    this.done = [];
    this.undone = [];
    this.paint();
  }

  setColors(colors) {
    this.colors = colors;
    this.paint();
  }

  /** Remember the mask as it is, before it is changed. */
  begin() {
    this.done.push(this.ids.slice());
    if (this.done.length > STEPS_KEPT) this.done.shift();
    this.undone = [];
  }

  undo() { return this.#step(this.done, this.undone); }

  redo() { return this.#step(this.undone, this.done); }

  #step(from, to) {
    if (!from.length) return false;
    to.push(this.ids);
    this.ids = from.pop();
    this.paint();
    return true;
  }

  /** A stroke of discs from (x0, y0) to (x1, y1); erasing takes pixels of that object only. */
  stroke(x0, y0, x1, y1, radius, id, erase) {
    const reach = Math.max(0.5, radius), steps = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0) / Math.max(1, reach / 2)));
    for (let i = 0; i <= steps; i++) this.#disc(x0 + (x1 - x0) * i / steps, y0 + (y1 - y0) * i / steps, reach, id, erase);
    const left = Math.floor(Math.min(x0, x1) - reach) - 1, top = Math.floor(Math.min(y0, y1) - reach) - 1;
    this.paint(left, top, Math.ceil(Math.max(x0, x1) + reach) + 1 - left, Math.ceil(Math.max(y0, y1) + reach) + 1 - top);
  }

  #disc(x, y, radius, id, erase) {
    const first = Math.max(0, Math.ceil(y - radius - 0.5)), last = Math.min(this.height - 1, Math.floor(y + radius - 0.5));
    for (let row = first; row <= last; row++) {
      const half = Math.sqrt(Math.max(0, radius * radius - (row + 0.5 - y) ** 2));
      const from = Math.max(0, Math.ceil(x - half - 0.5)), to = Math.min(this.width - 1, Math.floor(x + half - 0.5));
      for (let at = row * this.width + from; at <= row * this.width + to; at++) {
        if (!erase) this.ids[at] = id;
        else if (this.ids[at] === id) this.ids[at] = 0;
      }
    }
  }

  /** Fill the polygon of [x, y] points. */
  polygon(points, id) {
    const canvas = new OffscreenCanvas(this.width, this.height), context = canvas.getContext('2d');
    context.beginPath();
    points.forEach(([x, y]) => context.lineTo(x, y));
    context.fill();
    const alpha = context.getImageData(0, 0, this.width, this.height).data;
    for (let at = 0; at < this.ids.length; at++) if (alpha[4 * at + 3] > 127) this.ids[at] = id;
    this.paint();
  }

  /** The object becomes what `own` (0 or 1 a pixel) says; other objects keep their pixels. */
  replace(id, own) {
    for (let at = 0; at < this.ids.length; at++) {
      if (own[at]) { if (this.ids[at] === 0) this.ids[at] = id; } else if (this.ids[at] === id) this.ids[at] = 0;
    }
    this.paint();
  }

  /** Draw a part of the mask, or all of it. */
  paint(left = 0, top = 0, width = this.width, height = this.height) {
    const x0 = Math.max(0, left), y0 = Math.max(0, top);
    const x1 = Math.min(this.width, left + width), y1 = Math.min(this.height, top + height);
    if (x1 <= x0 || y1 <= y0) return;
    const pixels = this.context.createImageData(x1 - x0, y1 - y0), words = new Uint32Array(pixels.data.buffer);
    const table = new Uint32Array(256);
    this.colors.forEach(([r, g, b], id) => { table[id] = (255 << 24 | b << 16 | g << 8 | r) >>> 0; });
    let to = 0;
    for (let y = y0; y < y1; y++) for (let at = y * this.width + x0; at < y * this.width + x1; at++) words[to++] = table[this.ids[at]];
    this.context.putImageData(pixels, x0, y0);
  }
}

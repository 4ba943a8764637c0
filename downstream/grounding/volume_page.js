/* The viewer of volumes: axial slices to scroll through, the map of a model for a phrase or a structure over them, and the true outline.

   The volumes come from the JSON block #data (volume_page.py tells its form). Their text enters the page by textContent only. */
(() => {
  "use strict";

  const data = JSON.parse(document.getElementById("data").textContent);
  if (data.cases.length === 0) return;
  const at = (id) => document.getElementById(id);
  const LONG = 640; // pixels of the canvas' long side
  const PAGE = 5; // slices that PgUp and PgDn go
  const BOX = "#40e0ff";
  const state = { chosen: 0, target: 0, model: 0, slice: 0, map: true, truth: true, opacity: 0.6 };
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const number = (value) => (value === null ? "–" : Math.abs(value) < 10 ? value.toFixed(3) : value.toFixed(1));
  const volume = () => data.cases[state.chosen];
  const target = () => volume().targets[state.target];
  const layer = () => target().layers[state.model] ?? null;

  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // ------------------------------------------------------------------------------------------- colours: inferno, 0 to 255

  const POINTS = [[0, 0, 4], [22, 11, 57], [66, 10, 104], [106, 23, 110], [147, 38, 103], [188, 55, 84],
    [221, 81, 58], [243, 120, 25], [252, 165, 10], [246, 215, 70], [252, 255, 164]];
  const RAMP = Uint32Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (POINTS.length - 1);
    const first = Math.min(POINTS.length - 2, Math.floor(place));
    const [r, g, b] = POINTS[first].map((from, c) => Math.round(from + (POINTS[first + 1][c] - from) * (place - first)));
    return ((i << 24) | (b << 16) | (g << 8) | r) >>> 0; // as high, as opaque: what is low hides nothing. Bytes r g b a, little endian
  });
  const HATCH = [0xd02e2b2b, 0xd08e8680]; // where the model saw nothing

  // ------------------------------------------------------------------------------------------------------------ decoding

  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  /* Runs of off, on, off, ...: 7 bits a byte, lowest first. */
  function mask(given, size) {
    if (given.mask) return given.mask;
    given.mask = new Uint8Array(size);
    let [place, on, count, shift] = [0, 0, 0, 0];
    for (const byte of bytes(given.truth)) {
      count += (byte & 127) * 2 ** shift;
      shift += 7;
      if (byte & 128) continue;
      if (on) given.mask.fill(1, place, place + count);
      [place, on, count, shift] = [place + count, 1 - on, 0, 0];
    }
    return given.mask;
  }

  /* A place of the original (in voxels) on the grid of a map: [cell, share of the next one], or null where the model saw nothing. */
  function place(map, axis, original) {
    const input = map.scale[axis] * original + map.offset[axis];
    if (input < 0 || input > map.size[axis]) return null;
    const grid = clamp((input / map.size[axis]) * map.cells[axis] - 0.5, 0, map.cells[axis] - 1);
    const cell = Math.min(Math.floor(grid), Math.max(0, map.cells[axis] - 2));
    return [cell, grid - cell];
  }

  // ------------------------------------------------------------------------------------------------------------- drawing

  const pictures = new Map();

  function picture(index, slice) {
    const key = `${index} ${slice}`;
    if (!pictures.has(key)) {
      pictures.set(key, new Image());
      pictures.get(key).src = "data:image/jpeg;base64," + data.cases[index].images[slice];
    }
    return pictures.get(key);
  }

  function draw() {
    const [item, index, slice] = [volume(), state.chosen, state.slice];
    const found = picture(index, slice);
    if (!(found.complete && found.naturalWidth)) {
      found.addEventListener("load", () => index === state.chosen && slice === state.slice && draw(), { once: true });
      return;
    }
    const canvas = at("canvas");
    const ratio = LONG / Math.max(item.shape[1], item.shape[2]);
    [canvas.height, canvas.width] = [item.shape[1], item.shape[2]].map((n) => Math.max(1, Math.round(n * ratio)));
    const pen = canvas.getContext("2d");
    pen.drawImage(found, 0, 0, canvas.width, canvas.height);
    if (state.map && layer()) {
      pen.globalAlpha = state.opacity;
      pen.drawImage(heat(layer(), item, canvas.height, canvas.width), 0, 0);
      pen.globalAlpha = 1;
    }
    if (state.truth && target().truth !== null) outline(pen, item, canvas.height, canvas.width);
    canvas.dataset.drawn = `${index} ${state.target} ${slice}`;
  }

  /* A canvas of the map in this slice: linear between the centres of its cells along all three axes. */
  function heat(map, item, height, width) {
    map.levels ??= bytes(map.values);
    const [depth, rows, columns] = map.cells;
    const image = new ImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const z = place(map, 0, item.slices[state.slice] + 0.5);
    const plane = new Float32Array(rows * columns);
    if (z) {
      const [low, high] = [z[0], Math.min(depth - 1, z[0] + 1)].map((cell) => cell * rows * columns);
      for (let i = 0; i < plane.length; i++) plane[i] = map.levels[low + i] + (map.levels[high + i] - map.levels[low + i]) * z[1];
    }
    const across = Array.from({ length: width }, (_, i) => place(map, 2, ((i + 0.5) * item.shape[2]) / width));
    for (let j = 0; j < height; j++) {
      const y = z && place(map, 1, ((j + 0.5) * item.shape[1]) / height);
      const top = y ? y[0] * columns : 0;
      const down = y && y[0] + 1 < rows ? columns : 0;
      for (let i = 0; i < width; i++) {
        const x = y && across[i];
        if (!x) {
          pixels[j * width + i] = HATCH[((i + j) >> 2) % 3 === 0 ? 1 : 0];
          continue;
        }
        const right = x[0] + 1 < columns ? 1 : 0;
        const above = plane[top + x[0]] + (plane[top + x[0] + right] - plane[top + x[0]]) * x[1];
        const below = plane[top + down + x[0]] + (plane[top + down + x[0] + right] - plane[top + down + x[0]]) * x[1];
        pixels[j * width + i] = RAMP[(above + (below - above) * y[1] + 0.5) | 0];
      }
    }
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  /* The edges between voxels of the true mask and others. */
  function outline(pen, item, height, width) {
    const [rows, columns] = item.size;
    const start = state.slice * rows * columns;
    const on = mask(target(), item.slices.length * rows * columns).subarray(start, start + rows * columns);
    const [sy, sx] = [height / rows, width / columns];
    pen.beginPath();
    for (let y = 0; y <= rows; y++)
      for (let x = 0; x <= columns; x++) {
        const here = y < rows && x < columns ? on[y * columns + x] : 0;
        if (x < columns && here !== (y > 0 ? on[(y - 1) * columns + x] : 0)) (pen.moveTo(x * sx, y * sy), pen.lineTo((x + 1) * sx, y * sy));
        if (y < rows && here !== (x > 0 ? on[y * columns + x - 1] : 0)) (pen.moveTo(x * sx, y * sy), pen.lineTo(x * sx, (y + 1) * sy));
      }
    for (const [colour, line] of [["rgb(0 0 0 / 60%)", 3.5], [BOX, 1.6]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = line;
      pen.stroke();
    }
  }

  let waiting = false;
  function redraw() {
    if (!waiting) requestAnimationFrame(() => ((waiting = false), draw()));
    waiting = true;
  }

  // ------------------------------------------------------------------------------------------------------------- choosing

  function options(id, names, kinds) {
    const groups = new Map();
    names.forEach((name, i) => {
      const option = make("option", "", name);
      option.value = String(i);
      const group = kinds?.[i] ?? "";
      if (!groups.has(group)) groups.set(group, []);
      groups.get(group).push(option);
    });
    const nodes = [...groups].flatMap(([kind, some]) => {
      if (!kind) return some;
      const node = make("optgroup");
      node.label = kind;
      node.append(...some);
      return [node];
    });
    at(id).replaceChildren(...nodes);
  }

  /* The slice that shows most of what is looked for: of the truth, else the height of the map. */
  function best() {
    const item = volume();
    const plane = item.size[0] * item.size[1];
    const count = new Float64Array(item.slices.length);
    if (target().truth !== null) {
      const on = mask(target(), item.slices.length * plane);
      for (let i = 0; i < on.length; i++) count[Math.floor(i / plane)] += on[i];
    } else if (layer()) {
      const map = layer();
      map.levels ??= bytes(map.values);
      const cells = map.cells[1] * map.cells[2];
      const top = Array.from({ length: map.cells[0] }, (_, z) => map.levels.subarray(z * cells, (z + 1) * cells).reduce((a, b) => Math.max(a, b), 0));
      item.slices.forEach((z, i) => {
        const found = place(map, 0, z + 0.5);
        count[i] = found ? top[found[0]] * (1 - found[1]) + top[Math.min(map.cells[0] - 1, found[0] + 1)] * found[1] : -1;
      });
    }
    const high = Math.max(...count);
    const places = [...count.keys()].filter((i) => count[i] === high);
    return high > 0 ? places[places.length >> 1] : item.slices.length >> 1;
  }

  function chooseCase(index) {
    state.chosen = clamp(index, 0, data.cases.length - 1);
    at("case").value = String(state.chosen);
    const item = volume();
    options("target", item.targets.map(({ label, category }) => (category ? `${category}: ${label}` : label)), item.targets.map(({ kind }) => `${kind}s`));
    at("slice").max = String(item.slices.length - 1);
    chooseTarget(0);
  }

  function chooseTarget(index) {
    state.target = clamp(index, 0, volume().targets.length - 1);
    at("target").value = String(state.target);
    const item = volume();
    if (!layer()) state.model = Math.max(0, target().layers.findIndex((found) => found));
    at("phrase").textContent = target().label;
    at("facts").textContent = [item.study, item.split, target().kind, target().category].filter(Boolean).join(" · ");
    at("note").textContent = item.note;
    chooseModel(state.model);
    chooseSlice(best());
  }

  function chooseModel(row) {
    state.model = row;
    at("model").value = String(row);
    const found = layer();
    const image = new ImageData(256, 1);
    new Uint32Array(image.data.buffer).set(RAMP);
    at("ramp").getContext("2d").putImageData(image, 0, 0);
    at("ramp").hidden = !found;
    at("from").textContent = found ? String(Number(found.low.toPrecision(3))) : `no map of ${data.rows[row] ?? "a model"}`;
    at("to").textContent = found ? String(Number(found.high.toPrecision(3))) : "";
    numbers();
    redraw();
  }

  function chooseSlice(index) {
    const item = volume();
    state.slice = clamp(index, 0, item.slices.length - 1);
    at("slice").value = String(state.slice);
    at("slice-text").textContent = `${item.slices[state.slice] + 1} of ${item.shape[0]}`;
    redraw();
  }

  function numbers() {
    const known = data.metrics.map((_, i) => i).filter((i) => target().metrics.some((values) => values[i] !== null));
    const [head, body] = [make("thead"), make("tbody")];
    const top = make("tr");
    top.append(make("th", "", "here"), ...known.map((i) => make("th", "", data.metrics[i])));
    head.append(top);
    data.rows.forEach((name, row) => {
      if (!target().layers[row] && target().metrics[row].every((value) => value === null)) return;
      const line = make("tr", row === state.model ? "chosen" : "");
      line.append(make("th", "", name), ...known.map((i) => make("td", "", number(target().metrics[row][i]))));
      body.append(line);
    });
    at("numbers").replaceChildren(head, body);
    at("numbers").hidden = known.length === 0;
  }

  // ------------------------------------------------------------------------------------------------------------- controls

  function tick(name) {
    state[name] = at(name).checked;
    redraw();
  }

  function toggle(name) {
    at(name).checked = !at(name).checked;
    tick(name);
  }

  function fade(by = 0) {
    at("opacity").value = String(Number(at("opacity").value) + by);
    state.opacity = Number(at("opacity").value);
    at("opacity-value").textContent = state.opacity.toFixed(2);
    redraw();
  }

  function nextModel() {
    for (let step = 1; step <= data.rows.length; step++) {
      const row = (state.model + step) % data.rows.length;
      if (target().layers[row]) return chooseModel(row);
    }
  }

  const KEYS = {
    ArrowUp: () => chooseSlice(state.slice + 1),
    ArrowDown: () => chooseSlice(state.slice - 1),
    PageUp: () => chooseSlice(state.slice + PAGE),
    PageDown: () => chooseSlice(state.slice - PAGE),
    j: () => chooseCase(state.chosen + 1),
    k: () => chooseCase(state.chosen - 1),
    n: () => chooseTarget(state.target + 1),
    p: () => chooseTarget(state.target - 1),
    m: nextModel,
    h: () => toggle("map"),
    b: () => toggle("truth"),
    "[": () => fade(-0.05),
    "]": () => fade(0.05),
    "?": () => at("help").showModal(),
  };

  function press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || at("help").open || event.target.matches("select, textarea")) return;
    const moves = /^(Arrow|Page)/.test(event.key);
    if (moves && (event.target.matches("input[type=range]") || !inView())) return; // elsewhere they scroll the page
    if (!KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  }

  function inView() {
    const { top, bottom } = at("canvas").getBoundingClientRect();
    return bottom > 0 && top < window.innerHeight;
  }

  let turned = 0;
  function wheel(event) {
    event.preventDefault();
    turned += event.deltaMode === 0 ? event.deltaY / 40 : event.deltaY; // a notch is 100 or 120 pixels, or 3 lines; a touchpad sends few
    const steps = Math.trunc(turned);
    turned -= steps;
    if (steps) chooseSlice(state.slice - clamp(steps, -3, 3));
  }

  at("browser").hidden = false;
  options("case", data.cases.map(({ study, split }) => [study, split].filter(Boolean).join(" · ")));
  options("model", data.rows);
  for (const [id, choose] of [["case", chooseCase], ["target", chooseTarget], ["model", chooseModel], ["slice", chooseSlice]])
    at(id).addEventListener("input", () => choose(Number(at(id).value)));
  for (const name of ["map", "truth"]) at(name).addEventListener("input", () => tick(name));
  at("opacity").addEventListener("input", () => fade());
  at("back").addEventListener("click", () => chooseCase(state.chosen - 1));
  at("next").addEventListener("click", () => chooseCase(state.chosen + 1));
  at("keys").addEventListener("click", () => at("help").showModal());
  at("panels").addEventListener("wheel", wheel, { passive: false });
  document.addEventListener("keydown", press);
  chooseCase(0);
  fade();
})();

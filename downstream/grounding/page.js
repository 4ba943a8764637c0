/* The gallery of the page: a list of cases, and the chosen case with the maps of the models over its image.

   The cases come from the JSON block #data (page.py tells its form). Their text enters the page by textContent and setAttribute only. */
(() => {
  "use strict";

  const data = JSON.parse(document.getElementById("data").textContent);
  if (data.cases.length === 0) return;
  const at = (id) => document.getElementById(id);
  const HIT = data.metrics.indexOf("pointing"); // a hit: pointing >= .5
  const LONG = { viewer: 768, panel: 448, card: 160 }; // pixels of a canvas' long side
  const BOX = "#40e0ff";

  const state = { listed: [], chosen: 0, model: 0, many: false, map: true, boxes: true, mark: true, opacity: 0.5, threshold: 0 };
  const listing = { find: "", split: "", category: "", tag: "", outcome: "", metric: Math.max(0, HIT), of: 0, order: "given" };

  // ------------------------------------------------------------------------------------------------------ small things

  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  const number = (value) => (value === null ? "–" : Math.abs(value) < 10 ? value.toFixed(3) : value.toFixed(1));
  const short = (end) => (typeof end === "number" ? String(Number(end.toPrecision(3))) : end);
  const valueOf = (item, row, metric) => (data.metrics.length && data.rows.length ? item.metrics[row][metric] : null);
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  function outcome(item, row) {
    const value = HIT < 0 ? null : valueOf(item, row, HIT);
    return value === null ? "" : value >= 0.5 ? "hit" : "miss";
  }

  // ------------------------------------------------------------------------------------------- colours: inferno, 0 to 255

  const POINTS = [[0, 0, 4], [22, 11, 57], [66, 10, 104], [106, 23, 110], [147, 38, 103], [188, 55, 84],
    [221, 81, 58], [243, 120, 25], [252, 165, 10], [246, 215, 70], [252, 255, 164]];
  const RAMP = Uint32Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (POINTS.length - 1);
    const first = Math.min(POINTS.length - 2, Math.floor(place));
    const [r, g, b] = POINTS[first].map((from, c) => Math.round(from + (POINTS[first + 1][c] - from) * (place - first)));
    return ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0; // bytes r g b a, little endian
  });

  // ------------------------------------------------------------------------------------------------------------- maps

  /* Pixels of a canvas along one axis: the cell before each centre, the share of the cell after it, and which are seen: first <= i < end.
     Centre -> original pixel -> model's input (scale * original + offset) -> grid (input / size * cells - 0.5), as elvis.data.images.Frame. */
  function axis(layer, side, pixels, length) {
    const cells = layer.cells[side];
    const found = { cell: new Int32Array(pixels), share: new Float32Array(pixels), first: pixels, end: 0 };
    for (let i = 0; i < pixels; i++) {
      const input = layer.scale[side] * (((i + 0.5) * length) / pixels) + layer.offset[side];
      if (input < 0 || input > layer.size[side]) continue;
      const grid = clamp((input / layer.size[side]) * cells - 0.5, 0, cells - 1); // the border goes on outwards
      found.cell[i] = Math.min(Math.floor(grid), Math.max(0, cells - 2));
      found.share[i] = grid - found.cell[i];
      found.first = Math.min(found.first, i);
      found.end = i + 1;
    }
    return found;
  }

  /* base64 -> levels 0 to 255 (quantised: level 0 is layer.low, level 255 is layer.high). */
  function levels(layer) {
    layer.levels ??= Uint8Array.from(atob(layer.values), (c) => c.charCodeAt(0));
    return layer.levels;
  }

  /* A canvas of the map, bilinear between cell centres; transparent below the threshold (a part of the map's range over what is seen). */
  function heat(layer, shape, width, height, threshold) {
    const [rows, columns, grid, cells] = [axis(layer, 0, height, shape[0]), axis(layer, 1, width, shape[1]), levels(layer), layer.cells[1]];
    const right = cells > 1 ? 1 : 0;
    const down = layer.cells[0] > 1 ? cells : 0;
    const span = layer.to - layer.from;
    const slope = span > 0 ? (layer.high - layer.low) / 255 / span : 0;
    const start = span > 0 ? (layer.low - layer.from) / span : 0;
    const image = new ImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    const line = new Float32Array(cells);
    for (let y = rows.first; y < rows.end; y++) {
      const above = rows.cell[y] * cells;
      for (let c = 0; c < cells; c++) line[c] = grid[above + c] + (grid[above + down + c] - grid[above + c]) * rows.share[y];
      for (let x = columns.first; x < columns.end; x++) {
        const c = columns.cell[x];
        const part = clamp(start + slope * (line[c] + (line[c + right] - line[c]) * columns.share[x]), 0, 1);
        if (part >= threshold) pixels[y * width + x] = RAMP[(part * 255 + 0.5) | 0];
      }
    }
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    canvas.getContext("2d").putImageData(image, 0, 0);
    return { canvas, seen: [columns.first, rows.first, columns.end, rows.end] };
  }

  // ------------------------------------------------------------------------------------------------------- drawing a case

  const pictures = new Map();
  const jobs = new WeakMap(); // canvas -> its latest job: a picture that comes late draws nothing old

  function withPicture(index, then) {
    if (!pictures.has(index)) {
      pictures.set(index, new Image());
      pictures.get(index).src = "data:image/jpeg;base64," + data.images[index];
    }
    const picture = pictures.get(index);
    if (picture.complete && picture.naturalWidth) then(picture);
    else picture.addEventListener("load", () => then(picture), { once: true });
  }

  /* look: {long, map, boxes, mark, opacity, threshold}. */
  function draw(canvas, item, layer, look) {
    const ratio = look.long / Math.max(...item.shape);
    const [height, width] = item.shape.map((n) => Math.max(1, Math.round(n * ratio)));
    const job = {};
    jobs.set(canvas, job);
    withPicture(item.image, (picture) => {
      if (jobs.get(canvas) !== job) return;
      if (canvas.width !== width) canvas.width = width;
      if (canvas.height !== height) canvas.height = height;
      const pen = canvas.getContext("2d");
      pen.globalAlpha = 1;
      pen.drawImage(picture, 0, 0, width, height);
      if (look.map && layer) drawMap(pen, item, layer, look, width, height);
      const unit = Math.max(1, look.long / 320);
      if (look.boxes) drawBoxes(pen, item, width, height, unit);
      if (look.mark && layer?.peak) drawCross(pen, (layer.peak[1] * width) / item.shape[1], (layer.peak[0] * height) / item.shape[0], unit);
      canvas.dataset.drawn = item.study;
    });
  }

  function drawMap(pen, item, layer, look, width, height) {
    const { canvas, seen: [left, top, right, bottom] } = heat(layer, item.shape, width, height, look.threshold);
    pen.globalAlpha = look.opacity;
    pen.drawImage(canvas, 0, 0);
    pen.globalAlpha = 1;
    if (left === 0 && top === 0 && right === width && bottom === height) return;
    pen.beginPath(); // what the model did not see: all but the seen rectangle
    pen.rect(0, 0, width, height);
    pen.rect(left, top, right - left, bottom - top);
    pen.fillStyle = hatching(pen);
    pen.fill("evenodd");
  }

  let hatch = null;
  function hatching(pen) {
    if (hatch === null) {
      const tile = document.createElement("canvas");
      tile.width = tile.height = 8;
      const ink = tile.getContext("2d");
      ink.fillStyle = "rgb(43 46 50 / 80%)";
      ink.fillRect(0, 0, 8, 8);
      ink.strokeStyle = "#80868e";
      ink.lineWidth = 1.5;
      for (const shift of [-8, 0, 8]) {
        ink.moveTo(shift, 8);
        ink.lineTo(shift + 8, 0);
      }
      ink.stroke();
      hatch = tile;
    }
    return pen.createPattern(hatch, "repeat");
  }

  function drawBoxes(pen, item, width, height, unit) {
    const [sy, sx] = [height / item.shape[0], width / item.shape[1]];
    for (const [colour, line] of [["rgb(0 0 0 / 65%)", 2.2 * unit], [BOX, unit]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = line;
      for (const [x1, y1, x2, y2] of item.boxes) pen.strokeRect(x1 * sx, y1 * sy, (x2 - x1) * sx, (y2 - y1) * sy);
    }
  }

  function drawCross(pen, x, y, unit) {
    const arm = 4 * unit + 2;
    for (const [colour, line, more] of [["#000", 2.6 * unit, unit], ["#fff", 1.2 * unit, 0]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = line;
      pen.beginPath();
      pen.moveTo(x - arm - more, y);
      pen.lineTo(x + arm + more, y);
      pen.moveTo(x, y - arm - more);
      pen.lineTo(x, y + arm + more);
      pen.stroke();
    }
  }

  // ---------------------------------------------------------------------------------------------------- the list of cases

  const list = at("list");
  const visible = new Set();
  const cards = data.cases.map(makeCard);
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        const index = Number(target.dataset.index);
        if (isIntersecting) visible.add(index);
        else visible.delete(index);
        if (isIntersecting) drawCard(index);
      }
    },
    { root: list, rootMargin: "300px" },
  );

  function makeCard(item, index) {
    const node = make("li", "card");
    node.id = `case-${index}`;
    node.dataset.index = index;
    node.dataset.study = item.study;
    node.setAttribute("role", "option");
    node.setAttribute("aria-selected", "false");
    const [frame, canvas] = [make("div"), make("canvas")];
    const ratio = LONG.card / Math.max(...item.shape);
    [canvas.height, canvas.width] = item.shape.map((n) => Math.max(1, Math.round(n * ratio)));
    frame.append(canvas);
    const [text, value] = [make("section"), make("p", "value")];
    const card = { node, canvas, label: make("span", "quiet"), number: make("b"), outcome: make("span", "outcome"), drawn: -1 };
    value.append(card.label, card.number, card.outcome);
    text.append(make("p", "said", item.phrase), make("p", "quiet", [item.category, item.split].filter(Boolean).join(" · ")), make("p", "quiet", item.study), value);
    node.append(frame, text);
    node.addEventListener("click", () => choose(index));
    return card;
  }

  function drawCard(index) {
    const card = cards[index];
    if (card.drawn === listing.of) return;
    card.drawn = listing.of;
    draw(card.canvas, data.cases[index], data.cases[index].layers[listing.of], { ...state, long: LONG.card, map: true, boxes: true, mark: false, opacity: 0.5, threshold: 0 });
  }

  function fits(item) {
    const text = `${item.phrase} ${item.study}`.toLowerCase();
    return (
      (!listing.split || item.split === listing.split) &&
      (!listing.category || item.category === listing.category) &&
      (!listing.tag || item.tags.includes(listing.tag)) &&
      (!listing.outcome || outcome(item, listing.of) === listing.outcome) &&
      listing.find.toLowerCase().split(/\s+/).every((word) => text.includes(word))
    );
  }

  /* Which of two cases (places in data.cases) comes first; a value that is missing comes last in either order. */
  function before(a, b) {
    const [first, second] = [data.cases[a], data.cases[b]];
    const byStudy = first.study < second.study ? -1 : first.study > second.study ? 1 : 0;
    if (listing.order === "study") return byStudy || a - b;
    if (listing.order === "study-back") return -byStudy || a - b;
    if (listing.order === "given") return a - b;
    const [x, y] = [valueOf(first, listing.of, listing.metric), valueOf(second, listing.of, listing.metric)];
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    return (listing.order === "worst" ? x - y : y - x) || a - b;
  }

  /* The list as the filters and the order want it. */
  function relist() {
    state.listed = data.cases.map((_, i) => i).filter((i) => fits(data.cases[i])).sort(before);
    for (const index of state.listed) label(cards[index], data.cases[index]);
    list.replaceChildren(...state.listed.map((i) => cards[i].node));
    at("count").textContent = `${state.listed.length} of ${data.cases.length} listed`;
    for (const index of visible) if (cards[index].node.isConnected) drawCard(index);
    choose(state.listed.includes(state.chosen) ? state.chosen : state.listed[0] ?? -1);
  }

  function label(card, item) {
    const found = outcome(item, listing.of);
    card.label.textContent = data.metrics[listing.metric] ?? "";
    card.number.textContent = data.metrics.length ? number(valueOf(item, listing.of, listing.metric)) : "";
    card.outcome.textContent = found;
    card.outcome.className = `outcome ${found}`;
    card.outcome.hidden = !found;
  }

  function choose(index) {
    cards[state.chosen]?.node.setAttribute("aria-selected", "false");
    state.chosen = index;
    if (index >= 0) {
      cards[index].node.setAttribute("aria-selected", "true");
      list.setAttribute("aria-activedescendant", `case-${index}`);
      reveal(cards[index].node);
    } else list.removeAttribute("aria-activedescendant");
    showCase();
  }

  /* Scrolls the list alone, never the page. */
  function reveal(node) {
    list.scrollTop = clamp(list.scrollTop, node.offsetTop + node.offsetHeight - list.clientHeight, node.offsetTop);
    list.scrollLeft = clamp(list.scrollLeft, node.offsetLeft + node.offsetWidth - list.clientWidth, node.offsetLeft);
  }

  function step(by) {
    const place = state.listed.indexOf(state.chosen);
    if (place >= 0) choose(state.listed[clamp(place + by, 0, state.listed.length - 1)]);
  }

  // ----------------------------------------------------------------------------------------------------------- the case

  const panels = at("panels");
  const mapped = new Set(data.cases.flatMap((item) => item.layers.flatMap((layer, row) => (layer ? [row] : [])))); // rows with a map anywhere

  function showCase() {
    const item = data.cases[state.chosen];
    for (const id of ["panels", "legend", "numbers"]) at(id).hidden = !item;
    at("empty").hidden = Boolean(item);
    at("phrase").textContent = item ? item.phrase : "";
    at("facts").textContent = item ? [item.study, item.split, item.category, ...item.tags].filter(Boolean).join(" · ") : "";
    at("place").textContent = `${state.listed.indexOf(state.chosen) + 1} / ${state.listed.length}`;
    if (item) showModels(item);
  }

  function showModels(item) {
    const rows = state.many ? data.rows.map((_, i) => i).filter((row) => mapped.has(row)) : [state.model];
    panels.className = state.many ? "many" : "";
    while (panels.children.length > rows.length) panels.lastChild.remove();
    while (panels.children.length < rows.length) panels.append(makePanel());
    rows.forEach((row, i) => {
      const [name, value] = panels.children[i].lastChild.children;
      panels.children[i].dataset.row = row;
      panels.children[i].classList.toggle("chosen", row === state.model);
      name.textContent = (data.rows[row] ?? "") + (item.layers[row] ? "" : " (no map)");
      value.textContent = data.metrics.length ? `${data.metrics[listing.metric]} ${number(valueOf(item, row, listing.metric))}` : "";
      panels.children[i].firstChild.setAttribute("aria-label", `image of ${item.study}, ${item.boxes.length} truth boxes, map of ${data.rows[row] ?? "no model"}`);
    });
    showNumbers(item);
    redraw();
  }

  function makePanel() {
    const [figure, canvas, caption] = [make("figure"), make("canvas"), make("figcaption")];
    canvas.setAttribute("role", "img");
    caption.append(make("span"), make("span"));
    figure.append(canvas, caption);
    figure.addEventListener("click", () => state.many && chooseModel(Number(figure.dataset.row)));
    return figure;
  }

  function redraw() {
    const item = data.cases[state.chosen];
    if (!item) return;
    for (const figure of panels.children)
      draw(figure.firstChild, item, item.layers[figure.dataset.row], { ...state, long: state.many ? LONG.panel : LONG.viewer });
    showLegend(state.many ? { from: "lowest", to: "highest of each map" } : item.layers[state.model]);
  }

  function showLegend(layer) {
    const image = new ImageData(256, 1);
    if (layer) new Uint32Array(image.data.buffer).set(RAMP.map((colour, i) => (i / 255 >= state.threshold ? colour : 0)));
    at("ramp").getContext("2d").putImageData(image, 0, 0);
    at("from").textContent = layer ? short(layer.from) : `no map of ${data.rows[state.model] ?? "a model"} for this case`;
    at("to").textContent = layer ? short(layer.to) : "";
    at("ramp").hidden = !layer;
  }

  function showNumbers(item) {
    const [head, body] = [make("thead"), make("tbody")];
    const top = make("tr");
    top.append(make("th", "", "this case"), ...data.metrics.map((name) => make("th", "", name)));
    head.append(top);
    data.rows.forEach((name, row) => {
      const line = make("tr", row === state.model ? "chosen" : "");
      line.append(make("th", "", name), ...item.metrics[row].map((value) => make("td", "", number(value))));
      line.firstChild.setAttribute("scope", "row");
      body.append(line);
    });
    at("numbers").replaceChildren(head, body);
  }

  // ----------------------------------------------------------------------------------------------------------- controls

  let waiting = false;
  function redrawSoon() {
    if (!waiting) requestAnimationFrame(() => ((waiting = false), redraw()));
    waiting = true;
  }

  function options(id, entries) {
    at(id).replaceChildren(
      ...entries.map(([value, text]) => {
        const option = make("option", "", text);
        option.value = value;
        return option;
      }),
    );
  }

  function chooseModel(row) {
    state.model = row;
    at("model").value = String(row);
    if (state.chosen >= 0) showModels(data.cases[state.chosen]);
  }

  function tick(name) {
    state[name] = at(name).checked;
    redrawSoon();
  }

  function slide(name) {
    state[name] = Number(at(name).value);
    at(`${name}-value`).textContent = state[name].toFixed(2);
    redrawSoon();
  }

  function nudge(name, by) {
    at(name).value = String(Number(at(name).value) + by);
    slide(name);
  }

  function toggle(name) {
    at(name).checked = !at(name).checked;
    tick(name);
  }

  function clear() {
    for (const name of ["find", "split", "category", "tag", "outcome"]) listing[name] = at(name).value = "";
    relist();
  }

  function setUp() {
    const kinds = (of) => [...new Set(data.cases.flatMap(of))].sort().map((name) => [name, name]);
    options("split", [["", "all"], ...kinds((item) => item.split || [])]);
    options("category", [["", "all"], ...kinds((item) => item.category || [])]);
    options("tag", [["", "all"], ...kinds((item) => item.tags)]);
    for (const id of ["of", "model"]) options(id, data.rows.map((name, i) => [String(i), name]));
    options("metric", data.metrics.map((name, i) => [String(i), name]));
    at("metric").value = String(listing.metric);
    at("outcome").disabled = HIT < 0;
    for (const name of ["find", "split", "category", "tag", "outcome", "order"])
      at(name).addEventListener("input", () => ((listing[name] = at(name).value.trim()), relist()));
    for (const name of ["metric", "of"]) at(name).addEventListener("input", () => ((listing[name] = Number(at(name).value)), relist()));
    at("clear").addEventListener("click", clear);
    at("model").addEventListener("input", () => chooseModel(Number(at("model").value)));
    at("all").addEventListener("input", () => ((state.many = at("all").checked), showCase()));
    for (const name of ["map", "boxes", "mark"]) at(name).addEventListener("input", () => tick(name));
    for (const name of ["opacity", "threshold"]) at(name).addEventListener("input", () => slide(name));
    at("back").addEventListener("click", () => step(-1));
    at("next").addEventListener("click", () => step(1));
    at("keys").addEventListener("click", () => at("help").showModal());
  }

  // ----------------------------------------------------------------------------------------------------------- keyboard

  const KEYS = {
    j: () => step(1),
    k: () => step(-1),
    ArrowRight: () => step(1),
    ArrowLeft: () => step(-1),
    m: () => data.rows.length && chooseModel((state.model + 1) % data.rows.length),
    h: () => toggle("map"),
    b: () => toggle("boxes"),
    "[": () => nudge("opacity", -0.05),
    "]": () => nudge("opacity", 0.05),
    "-": () => nudge("threshold", -0.05),
    "=": () => nudge("threshold", 0.05),
    "+": () => nudge("threshold", 0.05),
    "/": () => (at("find").focus(), at("find").select()),
    "?": () => at("help").showModal(),
  };
  const WITHIN = { ArrowDown: KEYS.j, ArrowUp: KEYS.k, Home: () => step(-Infinity), End: () => step(Infinity) }; // elsewhere they scroll the page

  function press(event) {
    const target = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey || at("help").open) return;
    if (target === at("find") && event.key === "Escape") return target.blur();
    if (target.matches("select, textarea, input[type=search]")) return;
    const moves = /^(Arrow|Home|End)/.test(event.key);
    if (moves && (target.matches("input[type=range]") || target.closest(".scroll"))) return;
    const action = KEYS[event.key] ?? (target.closest("#gallery") ? WITHIN[event.key] : undefined);
    if (!action) return;
    event.preventDefault();
    action();
  }

  at("browser").hidden = false;
  setUp();
  for (const name of ["opacity", "threshold"]) slide(name);
  relist();
  for (const { node } of cards) watcher.observe(node);
  document.addEventListener("keydown", press);
})();

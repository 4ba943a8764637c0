/* The reports of the page: every case with its image, and the map of the sentence that is pointed at over it.

   The cases come from the JSON block #data (page.py tells its form). Their text enters the page by textContent and setAttribute only. */
(() => {
  "use strict";

  const data = JSON.parse(document.getElementById("data").textContent);
  if (data.cases.length === 0) return;
  const at = (id) => document.getElementById(id);
  const SIGNS = { agreed: "✓", missed: "−", invented: "+" };
  const BOX = "#40e0ff";
  const OPAQUE = 0.8; // of the maximum of a map; the lower a value, the clearer it is
  const state = { row: 0, filter: "all", order: [] };

  // ------------------------------------------------------------------------------------------------------ small things

  function make(tag, className, ...inside) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    node.append(...inside); // strings become text
    return node;
  }

  const number = (value) => (value === null ? "–" : value.toFixed(2));
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  // --------------------------------------------------------------------------------------------- colours: inferno, 0 to 255

  const POINTS = [[0, 0, 4], [22, 11, 57], [66, 10, 104], [106, 23, 110], [147, 38, 103], [188, 55, 84],
    [221, 81, 58], [243, 120, 25], [252, 165, 10], [246, 215, 70], [252, 255, 164]];
  const RAMP = Array.from({ length: 256 }, (_, level) => {
    const place = (level / 255) * (POINTS.length - 1);
    const first = Math.min(POINTS.length - 2, Math.floor(place));
    return POINTS[first].map((from, c) => Math.round(from + (POINTS[first + 1][c] - from) * (place - first)));
  });

  function drawRamp() {
    const image = new ImageData(256, 1);
    RAMP.forEach((colour, level) => image.data.set([...colour, 255], 4 * level));
    at("ramp").getContext("2d").putImageData(image, 0, 0);
  }

  // ------------------------------------------------------------------------------------------------------------- maps

  /* For each pixel of a canvas along an axis its place on the token grid, or -1 where the model's input does not show it.
     Centre -> original pixel -> input (scale * original + offset) -> grid (input / size * cells - 0.5), as elvis.data.images.Frame. */
  function places(item, axis, pixels, cells) {
    return Float64Array.from({ length: pixels }, (_, i) => {
      const input = item.scale[axis] * (((i + 0.5) * item.shape[axis]) / pixels) + item.offset[axis];
      return input < 0 || input > item.size[axis] ? -1 : clamp((input / item.size[axis]) * cells - 0.5, 0, cells - 1);
    });
  }

  /* A canvas of a map, bilinear between cell centres, on stripes where the model was shown nothing. */
  function heat(map, item, width, height) {
    const [down, across] = map.cells;
    const levels = Uint8Array.from(atob(map.values), (c) => c.charCodeAt(0));
    const [rows, columns] = [places(item, 0, height, down), places(item, 1, width, across)];
    const image = new ImageData(width, height);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const pixel = 4 * (y * width + x);
        if (rows[y] < 0 || columns[x] < 0) {
          image.data.set((x + y) % 8 < 3 ? [118, 123, 130, 217] : [43, 46, 50, 217], pixel);
          continue;
        }
        const [top, left] = [Math.floor(rows[y]), Math.floor(columns[x])];
        const [bottom, right] = [Math.min(top + 1, down - 1), Math.min(left + 1, across - 1)];
        const [dy, dx] = [rows[y] - top, columns[x] - left];
        const above = levels[top * across + left] * (1 - dx) + levels[top * across + right] * dx;
        const below = levels[bottom * across + left] * (1 - dx) + levels[bottom * across + right] * dx;
        const level = above * (1 - dy) + below * dy;
        const colour = RAMP[Math.round(level)];
        image.data[pixel] = colour[0];
        image.data[pixel + 1] = colour[1];
        image.data[pixel + 2] = colour[2];
        image.data[pixel + 3] = level * OPAQUE + 0.5;
      }
    }
    const canvas = make("canvas");
    [canvas.width, canvas.height] = [width, height];
    canvas.getContext("2d").putImageData(image, 0, 0);
    return canvas;
  }

  // ------------------------------------------------------------------------------------------------------------ the image

  /* The image of a card as it is now wanted: plain, or with the map and the box of the sentence that is shown. */
  function draw(card) {
    const { canvas, picture, item, shown } = card;
    if (!picture.naturalWidth) return; // it is drawn when it has come
    [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
    const pen = canvas.getContext("2d");
    pen.drawImage(picture, 0, 0);
    if (shown?.sentence.map) pen.drawImage(heat(shown.sentence.map, item, canvas.width, canvas.height), 0, 0);
    if (shown?.sentence.box) drawBox(pen, shown.sentence.box, canvas.height / item.shape[0], canvas.width / item.shape[1]);
    canvas.dataset.shows = shown ? shown.name : "image";
  }

  function drawBox(pen, [x1, y1, x2, y2], sy, sx) {
    const unit = Math.max(1, Math.max(pen.canvas.width, pen.canvas.height) / 300);
    for (const [colour, line] of [["rgb(0 0 0 / 65%)", 2.4 * unit], [BOX, 1.2 * unit]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = line;
      pen.strokeRect(x1 * sx, y1 * sy, (x2 - x1) * sx, (y2 - y1) * sy);
    }
  }

  /* Show a sentence of a card, or null: what is kept, or nothing. */
  function show(card, chosen) {
    const shown = chosen ?? card.kept;
    card.shown?.node.classList.remove("shown");
    shown?.node.classList.add("shown");
    card.shown = shown;
    card.caption.replaceChildren(...(shown ? caption(shown) : ["The image alone: point at a sentence."]));
    card.canvas.setAttribute("aria-label", `image of ${card.item.id}${shown ? `, with the map of: ${shown.sentence.text}` : ""}`);
    draw(card);
  }

  const caption = ({ name, sentence }) => [make("b", "", sentence.text), make("br"), [name, ...(facts(sentence).length ? facts(sentence) : ["its map"])].join(" · ")];

  function keep(card, chosen) {
    card.kept?.button.setAttribute("aria-pressed", "false");
    card.kept = card.kept === chosen ? null : chosen;
    card.kept?.button.setAttribute("aria-pressed", "true");
    show(card, null);
  }

  // -------------------------------------------------------------------------------------------------------- the sentences

  /* What is known of a generated sentence, in words; a reference sentence has none of it. */
  function facts({ confidence, topic, sure, region }) {
    const found = [];
    if (confidence !== undefined) found.push(`confidence ${number(confidence)}`);
    if (topic !== null && topic !== undefined) found.push(`topic ${topic}${sure === null ? "" : ` (${number(sure)})`}`);
    if (region) found.push(region);
    return found;
  }

  function reason({ confidence }, threshold) {
    if (threshold === null) return `withheld: not sure enough (confidence ${number(confidence)})`;
    return `withheld: confidence ${number(confidence)} is below ${number(threshold)}`;
  }

  function gauge(confidence) {
    if (typeof confidence !== "number") return [];
    const bar = make("span", "gauge", make("i"));
    bar.firstChild.style.width = `${100 * clamp(confidence, 0, 1)}%`;
    bar.setAttribute("aria-hidden", "true");
    return [bar];
  }

  /* A chip for each label that a sentence names and that was compared. */
  const chips = (sentence, labels) =>
    sentence.labels.filter((label) => Object.hasOwn(labels, label)).map((label) => chip(labels[label], `${label} (${labels[label]})`));

  const chip = (what, text) => make("span", `chip ${what}`, `${SIGNS[what]} ${text}`);

  /* A sentence as an entry of a list; one that has a map is a button. `report` is what it belongs to: labels and threshold. */
  function entry(card, sentence, name, report) {
    const node = make("li", sentence.kept === false ? "sentence abstained" : "sentence");
    const words = make("span", "words", sentence.text);
    const below = make("div", "facts");
    below.id = `facts-${card.index}-${name.replace(" ", "-")}`;
    const told = facts(sentence).join(" · ");
    if (told) below.append(make("span", "", ...gauge(sentence.confidence), told));
    if (sentence.kept === false) below.append(make("span", "why", reason(sentence, report.threshold)));
    if (sentence.cut) below.append(make("span", "why", "cut: it reached the limit of a sentence"));
    below.append(...chips(sentence, report.labels));
    const described = below.childElementCount > 0;
    node.append(sentence.map ? button(card, { node, sentence, name }, words, described ? below.id : "") : words);
    if (described) node.append(below);
    return node;
  }

  function button(card, chosen, words, described) {
    const node = make("button", "", words);
    node.type = "button";
    node.setAttribute("aria-pressed", "false");
    if (described) node.setAttribute("aria-describedby", described);
    chosen.button = node;
    chosen.node.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && show(card, chosen));
    chosen.node.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && show(card, null));
    node.addEventListener("focus", () => show(card, chosen));
    node.addEventListener("blur", () => show(card, null));
    node.addEventListener("click", () => keep(card, chosen));
    return node;
  }

  // ------------------------------------------------------------------------------------------------------------ the cases

  const cards = data.cases.map(makeCard);
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) if (isIntersecting) load(cards[target.dataset.index]);
    },
    { rootMargin: "600px" },
  );

  /* A picture is decoded once its case comes near the screen. */
  function load(card) {
    watcher.unobserve(card.node);
    if (card.picture.src) return;
    card.picture.addEventListener("load", () => draw(card), { once: true });
    card.picture.src = "data:image/jpeg;base64," + card.item.image;
  }

  function makeCard(item, index) {
    const card = { item, index, node: make("article", "case"), canvas: make("canvas"), caption: make("figcaption"), picture: new Image() };
    Object.assign(card, { generated: make("section", "generated"), reference: make("section", "reference"), score: make("span", "score quiet") });
    Object.assign(card, { kept: null, shown: null });
    card.node.id = `case-${index}`;
    card.node.tabIndex = -1;
    card.node.dataset.index = index;
    const title = make("h3", "", item.id);
    title.id = `title-${index}`;
    card.node.setAttribute("aria-labelledby", title.id);
    const ratio = 512 / Math.max(...item.shape); // it keeps its place until the picture has come
    [card.canvas.height, card.canvas.width] = item.shape.map((n) => Math.max(1, Math.round(n * ratio)));
    card.canvas.setAttribute("role", "img");
    const tags = item.tags.map((tag) => make("span", "tag", tag));
    const figure = make("figure", "", card.canvas, card.caption);
    card.node.append(make("div", "top", title, ...tags, card.score), make("div", "body", figure, card.generated, card.reference));
    return card;
  }

  const LABELS = Object.keys(SIGNS);

  /* The labels of a report in three lines, the sign and the word of each first. */
  function compared(labels) {
    const lines = LABELS.map((what) => [what, Object.keys(labels).filter((label) => labels[label] === what)]);
    const node = make("div", "labels");
    for (const [what, names] of lines)
      if (names.length) node.append(make("p", "", make("span", "word quiet", what), ...names.map((name) => chip(what, name))));
    if (!node.childElementCount) node.append(make("p", "quiet", "no label in either report"));
    return node;
  }

  function fill(card) {
    const report = card.item.rows[state.row];
    const heading = make("h4", "", `Generated · ${data.rows[state.row] ?? "no model"}`);
    card.kept = null;
    card.generated.replaceChildren(heading, ...(report ? said(card, report) : [make("p", "none", "This model has no report of this case.")]));
    card.reference.replaceChildren(make("h4", "", "Reference"), ...referred(card, report ?? { labels: {} }));
    card.score.textContent = report ? `${data.score} ${number(report.score)}` : "";
    show(card, null);
  }

  function said(card, report) {
    const { sentences } = report;
    const list = make("ol", "", ...sentences.map((sentence, i) => entry(card, sentence, `generated ${i + 1}`, report)));
    const parts = card.item.reference.length ? [compared(report.labels), list] : [list];
    if (!sentences.length) parts.push(make("p", "none", "Nothing was generated."));
    else if (!sentences.some((sentence) => sentence.kept)) parts.push(make("p", "ending", "Every sentence was withheld: the report is empty."));
    if (report.cut) parts.push(make("p", "ending", "… cut: the report reached its limit before it came to its end."));
    return parts;
  }

  function referred(card, report) {
    const { reference } = card.item;
    if (!reference.length) return [make("p", "none", "There is no reference report.")];
    return [make("ol", "", ...reference.map((sentence, i) => entry(card, sentence, `reference ${i + 1}`, report)))];
  }

  // -------------------------------------------------------------------------------------------------- filters and the model

  const has = (item, what) => Object.values(item.rows[state.row]?.labels ?? {}).includes(what);
  const scoreOf = (card) => card.item.rows[state.row]?.score ?? null;

  /* The quarter of the cases with the lowest scores, the lowest first. */
  function worst() {
    const known = cards.filter((card) => scoreOf(card) !== null).sort((a, b) => scoreOf(a) - scoreOf(b) || a.index - b.index);
    return known.slice(0, Math.ceil(known.length / 4));
  }

  const FILTERS = {
    all: ["all", () => cards],
    worst: ["worst quarter", worst],
    abnormal: ["abnormal", () => cards.filter(({ item }) => item.tags.includes(data.abnormal))],
    invented: ["with invented findings", () => cards.filter(({ item }) => has(item, "invented"))],
    missed: ["with missed findings", () => cards.filter(({ item }) => has(item, "missed"))],
  };

  function relist() {
    state.order = FILTERS[state.filter][1]();
    at("cases").replaceChildren(...state.order.map((card) => card.node));
    at("count").textContent = `${state.order.length} of ${cards.length} cases`;
    at("empty").hidden = state.order.length > 0;
    for (const { node } of state.order) watcher.observe(node);
  }

  function radios(id, entries, choose) {
    at(id).append(
      ...entries.map(([value, text], i) => {
        const input = make("input");
        Object.assign(input, { type: "radio", name: id, value, checked: i === 0 });
        input.addEventListener("change", () => choose(value));
        return make("label", "", input, text);
      }),
    );
  }

  function chooseRow(row) {
    state.row = Number(row);
    cards.forEach(fill);
    relist();
  }

  // ----------------------------------------------------------------------------------------------------------- keyboard

  function step(by) {
    const place = state.order.findIndex(({ node }) => node.contains(document.activeElement));
    const next = state.order[clamp(place + by, 0, state.order.length - 1)];
    next?.node.focus({ preventScroll: true });
    next?.node.scrollIntoView({ block: "start" });
  }

  function clear() {
    for (const card of cards) if (card.kept) keep(card, card.kept);
    for (const card of cards) if (card.shown) show(card, null);
  }

  const KEYS = { j: () => step(1), k: () => step(-1), Escape: clear };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(KEYS, event.key)) return;
    event.preventDefault();
    KEYS[event.key]();
  });

  at("browser").hidden = false;
  drawRamp();
  radios("rows", data.rows.map((name, i) => [String(i), name]), chooseRow);
  at("rows").hidden = data.rows.length < 2;
  radios("filter", Object.entries(FILTERS).map(([value, [text]]) => [value, text]), (value) => ((state.filter = value), relist()));
  chooseRow(0);
})();

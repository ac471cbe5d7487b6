/* The attention panel: one head as a heatmap and a table, all heads as small heatmaps, or feed-forward norms. */

const imageCache = new Map(); // heatmaps with one pixel per weight, by recording, run, sublayer and head
const MAX_CACHED_IMAGES = 60;

/** A head's heatmap, queries down and keys across; null while its weights are being unpacked. */
function headImage(part, head) {
  const name = `${recording.id} ${state.run} ${part.pattern} ${head}`;
  if (imageCache.has(name)) return imageCache.get(name);
  const [height, width] = [queries(part).length, keys(part).length];
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const colors = colorScale(part.kind);
  for (let query = 0; query < height; query++) {
    const row = attentionLevels(part, head, query);
    if (!row) return null;
    const count = Math.min(row.length, width);
    for (let key = 0; key < count; key++) pixels[query * width + key] = colors[row[key]];
    pixels.fill(colors[0], query * width + count, (query + 1) * width);
  }
  const canvas = element("canvas", { width, height });
  canvas.getContext("2d").putImageData(image, 0, 0);
  if (imageCache.size >= MAX_CACHED_IMAGES) imageCache.delete(imageCache.keys().next().value);
  imageCache.set(name, canvas);
  return canvas;
}

/** 256 colors from the background to a kind's hue, as little-endian RGBA. */
function colorScale(kind) {
  const read = (color) => color.match(/[0-9a-f]{2}/gi).map((hex) => parseInt(hex, 16));
  const { sunk, cross, self } = themeColors;
  const [from, to] = [read(sunk), read(kind === "cross-attention" ? cross : self)];
  return Uint32Array.from({ length: 256 }, (_, level) => {
    const [red, green, blue] = from.map((start, channel) =>
      Math.round(start + ((to[channel] - start) * level) / 255),
    );
    return (255 << 24) | (blue << 16) | (green << 8) | red;
  });
}

panels.attention = {
  key: () => `${state.part} ${state.head < 0} ${state.run}`,
  build(root) {
    const part = parts[state.part];
    root.className = `kind-${part.kind}`;
    if (!part.pattern) buildNorms(root, part);
    else if (state.head < 0) buildAllHeads(root, part);
    else buildHead(root, part);
  },
  update() {
    this.draw();
  },
  draw() {},
};

/** A feed-forward layer: the norm of its output at every token. */
function buildNorms(root, part) {
  const table = element("tbody");
  appendAll(
    root,
    element(
      "div",
      { class: "head-line" },
      element("h3", {}, title(part)),
      button({ click: () => setState({ tab: "computation", open: "" }) }, "Neurons"),
      ...help("forward"),
    ),
    element(
      "p",
      { class: "soft" },
      "A feed-forward layer has no attention: it reads one token at a time. ",
      "These are the Euclidean norms of its output and of the residual stream after it.",
    ),
    element(
      "div",
      { class: "scroller" },
      element(
        "table",
        { class: `bars kind-${part.kind}` },
        element("caption", {}, element("code", {}, part.output)),
        tableHead("position", "token", "output", "", "residual"),
        table,
      ),
    ),
    pythonRecord(part.output, ".norm(dim=-1)  # (B, T)"),
  );
  panels.attention.draw = () => {
    const norms = queries(part).map((_, at) => normAt("output_norms", part.output, part, at));
    const largest = Math.max(...norms) || 1;
    const shown = windowAround(queries(part).length, position(part), 40);
    replaceContent(
      table,
      ...shown.map((at) =>
        element(
          "tr",
          { class: at === position(part) ? "chosen" : "" },
          numberCell(String(at), "rank"),
          element("td", {}, tokenSpan(queries(part)[at])),
          element("td", { class: "share" }, bar(norms[at] / largest)),
          numberCell(number(norms[at])),
          numberCell(number(normAt("residual_norms", part.residual, part, at))),
        ),
      ),
    );
  };
}

/** All heads of one attention as small heatmaps. */
function buildAllHeads(root, part) {
  const canvases = [];
  appendAll(
    root,
    headLine("heads", element("h3", {}, `${title(part)}: all heads`)),
    element("p", { class: "soft" }, mapHint(part)),
    element(
      "div",
      { class: "small-maps" },
      ...Array.from({ length: model.heads }, (_, head) => {
        const canvas = element("canvas", { "aria-hidden": "true" });
        canvases.push(canvas);
        return button(
          {
            click: () => setState({ head }),
            "data-key": `map ${head}`,
            "aria-label": `Head ${head}, larger`,
          },
          `head ${head}`,
          canvas,
        );
      }),
    ),
  );
  rovingTabIndex(root.querySelector(".small-maps"));
  resetTabStop(root.querySelector(".small-maps"));
  panels.attention.draw = () =>
    canvases.forEach((canvas, head) => {
      const image = headImage(part, head);
      if (!image || canvas.image === image) return;
      // Enlarge short texts by a whole factor, so that a weight is a square.
      const scale = Math.max(1, Math.floor(240 / Math.max(image.width, image.height)));
      Object.assign(canvas, { width: image.width * scale, height: image.height * scale, image });
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.drawImage(image, 0, 0, canvas.width, canvas.height);
    });
}

const mapHint = (part) =>
  `Rows are queries, columns are ${part.kind === "cross-attention" ? "the encoder’s " : ""}keys. ` +
  "Color shows the square root of the weight, which makes small weights visible.";

const MAX_LABELS = 70; // keys with token labels above the map
const LABELS = { left: 96, top: 88, minCell: 10 }; // margins for labels, and the smallest labelled cell, in pixels

/** One head: a heatmap, and a table of the current query's largest weights. */
function buildHead(root, part) {
  const heading = element("h3");
  const readout = element("p", { class: "soft", "aria-live": "polite" });
  const [rows, columns] = [queries(part), keys(part)];
  const canvas = element("canvas", { role: "img", tabindex: 0 });
  const cursor = element("canvas", {
    "aria-hidden": "true",
    style: { position: "absolute", inset: "0", "pointer-events": "none" },
  });
  const scroller = element(
    "div",
    { class: "scroller" },
    element("div", { style: { position: "relative", width: "max-content" } }, canvas, cursor),
  );
  const table = element("tbody");
  const caption = element("caption");
  const code = element("div");
  appendAll(
    root,
    element(
      "div",
      { class: "head-line" },
      button(
        {
          click: () => setState({ head: (state.head + model.heads - 1) % model.heads }),
          "aria-label": "Previous head",
          "data-key": "previous",
        },
        "‹",
      ),
      heading,
      button(
        {
          click: () => setState({ head: (state.head + 1) % model.heads }),
          "aria-label": "Next head",
          "data-key": "following",
        },
        "›",
      ),
      button({ click: () => setState({ head: -1 }) }, "All heads"),
      button(
        { click: () => setState({ tab: "interventions", interventions: `${part.z}:${state.head}` }) },
        "Ablate",
      ),
      ...help("attention"),
    ),
    element("p", { class: "soft" }, mapHint(part)),
    element(
      "div",
      { class: "attention" },
      element(
        "div",
        { class: columns.length > 24 && columns.length <= MAX_LABELS ? "map wide" : "map" },
        scroller,
        readout,
      ),
      element(
        "div",
        { class: "weights" },
        element("table", { class: "bars" }, caption, tableHead("position", "token", "weight", ""), table),
      ),
    ),
    code,
  );
  let pointed = null; // [query, key] under the pointer or moved to by arrow keys
  let available = 0; // width in pixels
  let cell = 1; // pixels per weight
  let left = 0;
  let top = 0;
  const pick = (event) => {
    const box = canvas.getBoundingClientRect();
    const [key, query] = [
      Math.floor((event.clientX - box.left - left) / cell),
      Math.floor((event.clientY - box.top - top) / cell),
    ];
    return query >= 0 && key >= 0 && query < rows.length && key < columns.length ? [query, key] : null;
  };
  const point = (indices) => {
    pointed = indices;
    drawCursor();
  };
  canvas.addEventListener("pointermove", (event) => point(pick(event)));
  canvas.addEventListener("pointerleave", () => point(null));
  canvas.addEventListener("click", (event) => {
    const indices = pick(event);
    if (indices) openCell(part, ...indices);
  });
  canvas.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && pointed) openCell(part, ...pointed);
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [query, key] = pointed ?? [position(part), 0];
    const clamp = (value, length) => Math.max(0, Math.min(value, length - 1));
    point([clamp(query + step[0], rows.length), clamp(key + step[1], columns.length)]);
    if (step[0]) setState(inEncoder(part) ? { src: pointed[0] } : { at: pointed[0] });
  });

  function drawMap() {
    const image = available > 0 ? headImage(part, state.head) : null;
    if (!image || (canvas.image === image && canvas.available === available)) return;
    Object.assign(canvas, { image, available });
    const labelledCell = Math.min(24, Math.floor((available - LABELS.left) / columns.length));
    const labels = labelledCell >= LABELS.minCell;
    [left, top] = labels ? [LABELS.left, LABELS.top] : [0, 0];
    cell = labels
      ? labelledCell
      : Math.min(4000 / columns.length, Math.max(available / columns.length, 1.5), 24);
    const [width, height] = [left + cell * columns.length, top + cell * rows.length];
    const ratio = Math.min(devicePixelRatio, 8000 / Math.max(width, height));
    for (const layer of [canvas, cursor]) {
      Object.assign(layer, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
      Object.assign(layer.style, { width: `${width}px`, height: `${height}px` });
      layer.getContext("2d").scale(ratio, ratio);
    }
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(image, left, top, cell * columns.length, cell * rows.length);
    if (labels) drawLabels(context, rows, columns, cell);
    canvas.setAttribute(
      "aria-label",
      `Attention of ${title(part)}, head ${state.head}: ${rows.length} by ${columns.length} weights. ` +
        "Arrow keys move over them; the table lists the largest of the current query.",
    );
  }

  function drawCursor() {
    const context = cursor.getContext("2d");
    context.clearRect(0, 0, cursor.width, cursor.height);
    context.strokeStyle = themeColors.text;
    context.lineWidth = 1.5;
    context.strokeRect(left, top + position(part) * cell, cell * columns.length, Math.max(cell, 2));
    if (!pointed) {
      readout.textContent =
        "Point at the map or use arrow keys to read a weight. Click it or press Enter to see how it is computed.";
      return;
    }
    const [query, key] = pointed;
    context.strokeRect(left + key * cell - 1, top + query * cell - 1, cell + 2, cell + 2);
    const row = attentionLevels(part, state.head, query);
    const value = row && key < row.length ? fromLevel(row[key]) : 0;
    const [from, to] = [`${quote(rows[query])} (${query})`, `${quote(columns[key])} (${key})`];
    readout.textContent = `from ${from} to ${to}: ${number(value)}`;
  }

  panels.attention.draw = () => {
    heading.textContent = `${title(part)}, head ${state.head}`;
    drawMap();
    drawCursor();
    const query = shownQuery(part);
    const row = attentionLevels(part, state.head, query);
    if (!row) return;
    caption.textContent = `Largest weights of query ${quote(rows[query])} (${query})`;
    const strongest = [...row.keys()]
      .slice(0, columns.length)
      .filter((key) => row[key] > 0)
      .sort((a, b) => row[b] - row[a])
      .slice(0, 10);
    replaceContent(
      table,
      ...strongest.map((key) =>
        element(
          "tr",
          {},
          numberCell(String(key), "rank"),
          element("td", {}, tokenSpan(columns[key])),
          numberCell(number(fromLevel(row[key]))),
          element("td", { class: "share" }, bar(fromLevel(row[key]))),
        ),
      ),
    );
    if (code.dataset.head !== String(state.head)) {
      code.dataset.head = state.head;
      replaceContent(code, pythonRecord(part.pattern, `[0, ${state.head}]  # (T, S)`));
    }
  };
  new ResizeObserver(([entry]) => {
    available = entry.contentRect.width;
    render();
  }).observe(scroller);
}

function drawLabels(context, rows, columns, cell) {
  context.fillStyle = themeColors.soft;
  context.font = `${Math.min(12, cell)}px ui-monospace, monospace`;
  context.textBaseline = "middle";
  rows.forEach((id, query) => {
    context.textAlign = "right";
    context.fillText(label(id, 13), LABELS.left - 5, LABELS.top + (query + 0.5) * cell, LABELS.left - 8);
  });
  columns.forEach((id, key) => {
    context.save();
    context.translate(LABELS.left + (key + 0.5) * cell, LABELS.top - 5);
    context.rotate(-Math.PI / 2.6);
    context.textAlign = "left";
    context.fillText(label(id, 12), 0, 0, LABELS.top);
    context.restore();
  });
}

/** At most `count` consecutive positions around `center`. */
function windowAround(length, center, count) {
  const first = Math.max(0, Math.min(center - (count >> 1), length - count));
  return Array.from({ length: Math.min(count, length) }, (_, step) => first + step);
}

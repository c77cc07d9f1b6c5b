// The page of `groupdetr ui`. It asks the server for all detections of an image once, and filters
// them here, so the sliders never run the network again.
"use strict";

const RESULT_COLOURS = {
  detected: "#009e73", false_positive: "#0072b2", confused: "#94487d", missed: "#d55e00",
};
const RESULT_NAMES = {
  detected: "correct", false_positive: "false positive", confused: "confusion", missed: "missed",
  ignored: "ignored",
};
const KINDS = {
  false_positive: {
    name: "False positives",
    text: "Detections that are matched to no object, the highest score first. IoU is the largest " +
      "one with an object of any class. From 0.5 on, the object has another detection.",
  },
  missed: {
    name: "Missed objects",
    text: "Objects that are not detected. The score is the highest one of a detection of the " +
      "object, below the threshold. Those of which there is none come first, the largest first.",
  },
  confused: {
    name: "Confusions",
    text: "Objects that are detected as another class, the highest score first.",
  },
  images: { name: "All images", text: "Those with the most errors first." },
};
const PAGE = 48; // cards that are added at a time
const MASK_SIDE = 900; // pixels of the longer side of a mask that is drawn
const MASK_OPACITY = 0.42;
const MIN_FONT = 11, MAX_FONT = 14; // pixels
const OVERHANG = 0.72; // of the height of the window: the largest height of an image

const $ = (id) => document.getElementById(id);

let info = null;
const state = {
  score: 0.5,
  group: 0, // position in info.groups, whose length stands for all of them
  hidden: new Set(), // labels of the classes that are not shown
  view: null, // the image that is shown
  lit: -1, // index of the detection that the pointer is on
  tab: "",
  images: [], // that the user has dropped: {name, data, error}
  current: -1, // which of them is shown
  list: [], // the indices of validation images that the arrows go through
  kind: "false_positive",
  label: "",
};

/** Create an element. Texts are never read as HTML. */
function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function dot(colour) {
  const node = element("i");
  node.style.background = colour;
  return node;
}

const rgb = (colour) => `rgb(${colour.join(",")})`;
const classColour = (label) => rgb(info.class_colours[label]);
const groupColour = (position) => rgb(info.group_colours[position]);
const groupName = (position) => `group ${info.groups[position]}${position ? "" : " (primary)"}`;
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

async function ask(path, options) {
  const response = await fetch(path, options);
  const content = await response.json();
  if (!response.ok) {
    const error = new Error(content.error || response.statusText);
    error.where = content.where;
    error.remedy = content.remedy;
    throw error;
  }
  return content;
}

function describe(error) {
  if (error instanceof TypeError) return "The server does not answer: has it ended?";
  return [error.message, error.where, error.remedy].filter(Boolean).join(" · ");
}

// Detections at the current threshold

/** Return the indices of the detections of a group that are kept. */
function kept(detections) {
  const indices = [];
  detections.forEach((detection, index) => {
    if (detection.score >= state.score && !state.hidden.has(detection.label)) indices.push(index);
  });
  return indices;
}

/** Return the result of each kept detection of a group, and the objects that are missed. */
function results(view, group) {
  const { detections, objects, overlaps } = view.groups[group];
  const above = detections.map((detection) => detection.score >= state.score);
  const result = new Map();
  const missed = new Set();
  view.truth.forEach((object, index) => { if (!object.crowd) missed.add(index); });
  const madeUp = new Set();
  detections.forEach((_, index) => {
    if (!above[index]) return;
    if (objects[index] >= 0) {
      result.set(index, "detected");
      missed.delete(objects[index]);
    } else if (objects[index] === -1) {
      result.set(index, "false_positive");
      madeUp.add(index);
    } else result.set(index, "ignored");
  });
  // An object that is missed and a detection that is made up belong together if they overlap.
  for (const [detection, object] of overlaps) {
    if (madeUp.has(detection) && missed.has(object)) {
      madeUp.delete(detection);
      missed.delete(object);
      result.set(detection, "confused");
    }
  }
  return { result, missed };
}

/**
 * Return the column of each row such that the sum of the values is largest (Hungarian algorithm).
 * Each row and each column is used at most once, and -1 stands for none.
 */
function assign(values, numColumns) {
  const numRows = values.length, total = numColumns + numRows; // a spare column for each row
  const cost = (row, column) => (column < numColumns ? -values[row][column] : 0);
  const rowPotential = new Array(numRows + 1).fill(0);
  const columnPotential = new Array(total + 1).fill(0);
  const rowOf = new Array(total + 1).fill(0); // 0: the column is free
  const former = new Array(total + 1).fill(0);
  for (let row = 1; row <= numRows; row++) {
    rowOf[0] = row;
    let column = 0;
    const smallest = new Array(total + 1).fill(Infinity);
    const used = new Array(total + 1).fill(false);
    do {
      used[column] = true;
      const current = rowOf[column];
      let delta = Infinity, nearest = 0;
      for (let other = 1; other <= total; other++) {
        if (used[other]) continue;
        const reduced = cost(current - 1, other - 1) - rowPotential[current] - columnPotential[other];
        if (reduced < smallest[other]) { smallest[other] = reduced; former[other] = column; }
        if (smallest[other] < delta) { delta = smallest[other]; nearest = other; }
      }
      for (let other = 0; other <= total; other++) {
        if (used[other]) {
          rowPotential[rowOf[other]] += delta;
          columnPotential[other] -= delta;
        } else smallest[other] -= delta;
      }
      column = nearest;
    } while (rowOf[column] !== 0);
    do { rowOf[column] = rowOf[former[column]]; column = former[column]; } while (column);
  }
  const columnOf = new Array(numRows).fill(-1);
  for (let column = 1; column <= numColumns; column++) {
    if (rowOf[column] > 0) columnOf[rowOf[column] - 1] = column - 1;
  }
  return columnOf;
}

/** Return, for each group, the index of its box for each of the detections, -1 for none. */
function boxesOfGroups(view, indices) {
  const rowOf = new Map(indices.map((index, row) => [index, row]));
  return view.pairs.map((pairs, group) => {
    const columnOf = new Map();
    const possible = pairs.filter(([detection]) => rowOf.has(detection));
    for (const [, candidate] of possible) {
      if (!columnOf.has(candidate)) columnOf.set(candidate, columnOf.size);
    }
    const candidates = [...columnOf.keys()];
    const values = indices.map(() => new Array(candidates.length).fill(0));
    for (const [detection, candidate, iou] of possible) {
      const score = view.groups[group].detections[candidate].score;
      values[rowOf.get(detection)][columnOf.get(candidate)] = iou * score;
    }
    return assign(values, candidates.length).map((column, row) =>
      column >= 0 && values[row][column] > 0 ? candidates[column] : -1);
  });
}

// Masks

/** Decode COCO's compressed run lengths: the numbers of pixels outside and inside, in turns. */
function decodeCounts(text) {
  const counts = [];
  let position = 0;
  while (position < text.length) {
    let value = 0, shift = 0, code;
    do {
      code = text.charCodeAt(position++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16) value |= -1 << shift;
    if (counts.length > 2) value += counts[counts.length - 2];
    counts.push(value);
  }
  return counts;
}

const maskCanvases = new WeakMap();

/** Return a canvas with a mask in a colour, at most `MASK_SIDE` pixels wide and high. */
function maskCanvas(mask, colour) {
  const cached = maskCanvases.get(mask);
  if (cached && cached.colour === colour) return cached.canvas;
  const [height, width] = mask.size;
  const inside = new Uint8Array(height * width); // column by column
  let position = 0, value = 0;
  for (const count of decodeCounts(mask.counts)) {
    if (value) inside.fill(1, position, position + count);
    position += count;
    value = 1 - value;
  }
  const scale = Math.min(1, MASK_SIDE / Math.max(width, height));
  const canvas = element("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, canvas.width, canvas.height);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let y = 0; y < canvas.height; y++) {
    const row = Math.min(height - 1, Math.floor((y + 0.5) / scale));
    for (let x = 0; x < canvas.width; x++) {
      const column = Math.min(width - 1, Math.floor((x + 0.5) / scale));
      pixels.data[4 * (y * canvas.width + x) + 3] = inside[column * height + row] ? 255 : 0;
    }
  }
  context.putImageData(pixels, 0, 0);
  maskCanvases.set(mask, { colour, canvas });
  return canvas;
}

// Drawing

/** Return everything that is drawn now: detections, boxes of all groups, annotations. */
function scene() {
  const view = state.view;
  const all = state.group === info.groups.length && view.pairs;
  const group = all ? 0 : Math.min(state.group, view.groups.length - 1);
  const detections = view.groups[group].detections;
  const indices = kept(detections);
  const byResult = view.truth && $("by-result").checked && !all;
  const found = view.truth ? results(view, group) : null;
  return {
    view, all, group, detections, indices, byResult, found,
    others: all ? boxesOfGroups(view, indices) : null,
  };
}

function colourOf(current, index) {
  if (current.byResult) return RESULT_COLOURS[current.found.result.get(index)] || "#888888";
  return classColour(current.detections[index].label);
}

function outline(context, box, scale, colour, width, dashes = []) {
  const [x0, y0, x1, y1] = box.map((coordinate) => coordinate * scale);
  context.setLineDash(dashes);
  context.lineJoin = "round";
  context.strokeStyle = "rgba(16,18,22,.55)";
  context.lineWidth = width + 2;
  if (!dashes.length) context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  context.setLineDash([]);
}

/** Write a label at a corner of a box where no other label is. Without room it is left out. */
function label(context, text, box, scale, colour, placed, limits) {
  const height = limits.font + 6;
  const width = context.measureText(text).width + 10;
  const [x0, y0, , y1] = box.map((coordinate) => coordinate * scale);
  const x = Math.max(0, Math.min(x0 - 1, limits.width - width));
  for (const y of [y0 - height, y0, y1, y1 - height]) {
    if (y < 0 || y + height > limits.height) continue;
    const overlaps = placed.some((other) =>
      x < other.x + other.width && other.x < x + width && y < other.y + height && other.y < y + height);
    if (overlaps) continue;
    placed.push({ x, y, width });
    context.fillStyle = colour;
    context.beginPath();
    context.roundRect(x, y, width, height, 4);
    context.fill();
    context.fillStyle = isLight(colour) ? "#101216" : "#ffffff";
    context.fillText(text, x + 5, y + height / 2 + 0.5);
    return;
  }
}

function isLight(colour) {
  const parts = colour.startsWith("#")
    ? [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16))
    : colour.match(/\d+/g).map(Number);
  return 0.299 * parts[0] + 0.587 * parts[1] + 0.114 * parts[2] > 150;
}

function draw() {
  const view = state.view;
  if (!view) return;
  const column = $("stage").parentElement.clientWidth;
  const scale = Math.min(column / view.width, (OVERHANG * window.innerHeight) / view.height);
  const width = Math.round(view.width * scale), height = Math.round(view.height * scale);
  $("stage").style.width = `${width}px`;
  $("stage").style.height = `${height}px`;
  const canvas = $("canvas"), density = window.devicePixelRatio || 1;
  canvas.width = width * density;
  canvas.height = height * density;
  const context = canvas.getContext("2d");
  context.scale(density, density);
  const font = Math.max(MIN_FONT, Math.min(MAX_FONT, width / 42));
  context.font = `600 ${font}px ${getComputedStyle(document.body).fontFamily}`;
  context.textBaseline = "middle";

  const current = scene();
  const line = width < 500 ? 1.6 : 2;
  if ($("show-masks").checked && !current.all) {
    context.globalAlpha = MASK_OPACITY;
    for (const index of current.indices) {
      const { mask } = current.detections[index];
      if (mask) context.drawImage(maskCanvas(mask, colourOf(current, index)), 0, 0, width, height);
    }
    context.globalAlpha = 1;
  }
  let numBoxes = 0;
  if (view.truth && $("show-truth").checked) {
    view.truth.forEach((object, index) => {
      if (state.hidden.has(object.label)) return;
      const isMissed = current.found.missed.has(index);
      const colour = isMissed && !current.all ? RESULT_COLOURS.missed : "#ffffff";
      const lineWidth = isMissed && !current.all ? line + 0.6 : 1.2;
      outline(context, object.box, scale, colour, lineWidth, isMissed ? [7, 4] : [3, 3]);
    });
  }
  if (current.all) {
    for (let group = info.groups.length - 1; group >= 0; group--) {
      current.others[group].forEach((candidate, row) => {
        if (candidate < 0) return;
        if (state.lit >= 0 && current.indices[row] !== state.lit) return;
        const { box } = view.groups[group].detections[candidate];
        outline(context, box, scale, groupColour(group), group ? 1.4 : line + 0.8);
        numBoxes += 1;
      });
    }
  } else {
    for (const index of [...current.indices].reverse()) {
      const width = index === state.lit ? line + 1.8 : line;
      outline(context, current.detections[index].box, scale, colourOf(current, index), width);
      numBoxes += 1;
    }
  }
  if (view.focus) outline(context, view.focus, scale, "#ffffff", 1, [2, 6]);
  if ($("show-labels").checked || state.lit >= 0) {
    const placed = [];
    const limits = { width, height, font };
    const order = [...current.indices].sort((a, b) => (b === state.lit) - (a === state.lit));
    for (const index of order) {
      if (!$("show-labels").checked && index !== state.lit) continue;
      if (current.all && state.lit >= 0 && index !== state.lit) continue;
      const detection = current.detections[index];
      const text = `${info.classes[detection.label]} ${detection.score.toFixed(2)}`;
      const colour = current.all ? "#101216" : colourOf(current, index);
      label(context, text, detection.box, scale, colour, placed, limits);
    }
    if (view.truth && $("show-truth").checked && current.byResult) {
      for (const index of current.found.missed) {
        const object = view.truth[index];
        if (state.hidden.has(object.label)) continue;
        label(context, info.classes[object.label], object.box, scale, RESULT_COLOURS.missed, placed,
          limits);
      }
    }
  }
  canvas.setAttribute("aria-label", plural(current.indices.length, "detection"));
  canvas.dataset.boxes = numBoxes;
}

/** Show the current image: canvas, legend, classes and table. */
function render() {
  const view = state.view;
  $("viewer").hidden = !view;
  if (!view) return;
  draw();
  const current = scene();
  renderControls(view, current);
  renderLegend(view, current);
  renderChips(current);
  renderTable(current);
}

function renderControls(view, current) {
  $("score").value = state.score;
  $("score-value").textContent = state.score.toFixed(2);
  $("group").value = state.group;
  const waiting = info.groups.length > 1 && !view.pairs;
  $("group").disabled = waiting;
  $("group-value").textContent = waiting ? "running all groups…"
    : state.group === info.groups.length ? `all ${info.groups.length} groups` : groupName(state.group);
  for (const node of document.querySelectorAll(".needs-truth")) node.hidden = !view.truth;
  $("by-result").disabled = Boolean(current.all);
}

function renderLegend(view, current) {
  const entries = [];
  if (current.all) {
    for (let group = 0; group < info.groups.length; group++) {
      entries.push([groupColour(group), groupName(group)]);
    }
  } else if (current.byResult) {
    for (const [kind, colour] of Object.entries(RESULT_COLOURS)) {
      entries.push([colour, RESULT_NAMES[kind]]);
    }
  }
  if (view.truth && $("show-truth").checked) entries.push(["#ffffff", "annotation (dashed)"]);
  $("legend").replaceChildren(
    ...entries.map(([colour, name]) => element("li", {}, dot(colour), name)));
}

function renderChips(current) {
  const counts = new Map();
  for (const detection of current.detections) {
    if (detection.score >= state.score) {
      counts.set(detection.label, (counts.get(detection.label) || 0) + 1);
    }
  }
  for (const label of state.hidden) if (!counts.has(label)) counts.set(label, 0);
  const labels = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a) || a - b);
  $("chips").replaceChildren(...labels.map((label) => element(
    "button",
    {
      type: "button", class: "chip", "aria-pressed": String(!state.hidden.has(label)),
      title: "Show or hide this class",
      onclick: () => {
        if (!state.hidden.delete(label)) state.hidden.add(label);
        render();
      },
    },
    dot(classColour(label)), info.classes[label], element("b", {}, String(counts.get(label))),
  )));
}

function renderTable(current) {
  const { view, all, indices, detections, found, others } = current;
  const head = (...content) => element("th", { scope: "col", class: "n" }, ...content);
  const heads = [element("th", { scope: "col" }, "class")];
  if (all) {
    for (let group = 0; group < info.groups.length; group++) {
      heads.push(head(dot(groupColour(group)), String(info.groups[group])));
    }
  } else heads.push(head("score"), head(view.truth ? "result" : "width × height"));
  const rows = indices.map((index, row) => {
    const detection = detections[index];
    const cells = [
      element("td", {}, dot(all ? classColour(detection.label) : colourOf(current, index)),
        info.classes[detection.label]),
      element("td", { class: "n" }, detection.score.toFixed(all ? 2 : 3)),
    ];
    if (all) {
      for (let group = 1; group < info.groups.length; group++) {
        const candidate = others[group][row];
        const score = candidate < 0 ? "–" : view.groups[group].detections[candidate].score.toFixed(2);
        cells.push(element("td", { class: "n" }, score));
      }
    } else if (view.truth) {
      const kind = found.result.get(index);
      cells.push(element("td", { class: `n result-${kind}` }, RESULT_NAMES[kind]));
    } else {
      const [x0, y0, x1, y1] = detection.box;
      cells.push(element("td", { class: "n" }, `${Math.round(x1 - x0)} × ${Math.round(y1 - y0)}`));
    }
    return element(
      "tr",
      {
        "data-index": index, class: index === state.lit ? "lit" : "",
        onpointerenter: () => light(index), onpointerleave: () => light(-1),
      },
      ...cells);
  });
  const missed = [];
  if (view.truth && !all) {
    for (const index of found.missed) {
      const object = view.truth[index];
      if (state.hidden.has(object.label)) continue;
      missed.push(element("tr", { class: "missed-row" },
        element("td", {}, dot(RESULT_COLOURS.missed), info.classes[object.label]),
        element("td", { class: "n" }, "–"),
        element("td", { class: "n result-missed" }, RESULT_NAMES.missed)));
    }
  }
  const body = element("tbody", {}, ...rows, ...missed);
  $("table").replaceChildren(element("thead", {}, element("tr", {}, ...heads)), body);
  $("table").hidden = !rows.length && !missed.length;
  let text = plural(indices.length, "detection");
  if (!indices.length) {
    const best = Math.max(0, ...detections.map((detection) => detection.score));
    text = `No detection is shown. The best one has a score of ${best.toFixed(2)}.`;
  } else if (view.truth && !all) text += `, ${plural(found.missed.size, "object")} missed`;
  else if (all) text += ", with the score of each group for the same object. – means none.";
  $("summary").textContent = text;
}

/** Emphasise one detection, -1 for none, on the image and in the table. */
function light(index) {
  if (state.lit === index) return;
  state.lit = index;
  draw();
  for (const row of $("table").querySelectorAll("tr[data-index]")) {
    row.classList.toggle("lit", Number(row.dataset.index) === index);
  }
}

/** Show an image. ``keep``: it is the same image, about which more is known now. */
function show(view, keep = false) {
  state.view = view;
  state.lit = -1;
  if (!keep) {
    $("image").src = view.address;
    $("image").alt = view.name;
    $("image-name").textContent = view.name;
  }
  render();
}

// Images of the user

async function addFiles(files) {
  const added = [...files].map((file) => ({ name: file.name || "pasted image", file }));
  if (!added.length) return;
  location.hash = "#images";
  const first = state.images.length;
  state.images.push(...added);
  for (const [offset, image] of added.entries()) {
    const left = added.length - offset;
    status(`Detecting objects in ${image.name}${left > 1 ? `, ${left - 1} more to come` : ""}…`);
    renderStrip();
    try {
      image.data = await ask("api/detect", { method: "POST", body: image.file });
      image.data.name = image.name;
    } catch (error) {
      image.error = describe(error);
    }
    delete image.file;
    // The first new image is shown as soon as it is there, and later ones wait for a click.
    if (offset === 0 || state.current < first) showOwn(first + offset);
    renderStrip();
  }
  const failed = added.filter((image) => image.error);
  status(failed.map((image) => `${image.name}: ${image.error}`).join("\n"), failed.length > 0);
}

function status(text, failed = false) {
  $("status").textContent = text;
  $("status").classList.toggle("failed", failed);
}

function showOwn(index) {
  const image = state.images[index];
  if (!image) return;
  state.current = index;
  if (image.data && state.tab === "images") show(image.data);
  renderStrip();
}

function renderStrip() {
  $("drop").classList.toggle("small", state.images.length > 0);
  $("strip").replaceChildren(...(state.images.length < 2 ? [] : state.images.map((image, index) => {
    const content = image.data ? element("img", { src: image.data.address, alt: "" })
      : image.error ? "not read" : "…";
    return element("button", {
      type: "button", role: "listitem", title: image.error || image.name,
      "aria-label": image.name, class: image.error ? "failed" : "",
      "aria-current": index === state.current ? "true" : null,
      onclick: () => showOwn(index),
    }, content);
  })));
}

// The validation set

let polling = false;

async function startValidation() {
  if (!info.has_validation_set) {
    message(`There is no validation set to show. ${info.no_data}`);
    return;
  }
  if (polling) return;
  polling = true;
  try {
    let progress = await ask("api/validation", { method: "POST" });
    while (progress.state !== "done") {
      if (progress.state === "failed") {
        message([progress.error, progress.where, progress.remedy].filter(Boolean).join(" · "), true);
        return;
      }
      const text = progress.total ? `Detecting objects in the validation set: ` +
        `${progress.done} of ${plural(progress.total, "image")}` : "Reading the dataset…";
      message(text, false, progress.total ? progress.done / progress.total : 0);
      await new Promise((resolve) => setTimeout(resolve, 400));
      progress = await ask("api/validation");
    }
    $("validation-message").hidden = true;
    await openValidation();
  } catch (error) {
    message(describe(error), true);
  } finally {
    polling = false;
  }
}

function message(text, failed = false, fraction = null) {
  const node = $("validation-message");
  node.hidden = false;
  node.classList.toggle("failed", failed);
  const bar = fraction === null ? null : element("progress", { max: 1, value: fraction });
  node.replaceChildren(text, ...(bar ? [bar] : []));
}

let ready = false;

async function openValidation() {
  if (!ready) {
    const { images } = await ask("api/images");
    state.numImages = images.length;
    $("errors-class").append(
      ...info.classes.map((name, label) => element("option", { value: label }, name)));
    ready = true;
  }
  route();
}

let request = 0;

/** Show the numbers at the current threshold, and the first errors of the chosen kind. */
async function refreshErrors() {
  $("errors-score").value = state.score;
  $("errors-score-value").textContent = state.score.toFixed(2);
  const number = ++request;
  const content = await askErrors(0);
  if (number !== request) return; // the slider has moved on
  renderTiles(content.summary);
  renderKinds(content.summary);
  $("kind-text").textContent = KINDS[state.kind].text + (content.recorded
    ? " These are the detections that groupdetr val has recorded." : "");
  const cards = state.kind === "images" ? content.images.slice(0, PAGE) : content.items;
  state.cards = cards;
  state.cardTotal = content.total;
  $("cards").replaceChildren(...cards.map(card));
  $("more").hidden = cards.length >= content.total;
  if (!content.total) {
    $("cards").replaceChildren(element("p", { class: "hint" }, "There is none at this threshold."));
  }
}

async function askErrors(start) {
  const kind = state.kind === "images" ? "false_positive" : state.kind;
  const query = new URLSearchParams({ score: state.score, kind, start, count: PAGE });
  if (state.label !== "") query.set("label", state.label);
  const content = await ask(`api/errors?${query}`);
  if (state.kind === "images") {
    const { images } = await ask(`api/images?${query}`);
    content.images = images;
    content.total = images.length;
    state.allImages = images;
  }
  return content;
}

async function more() {
  const start = state.cards.length, number = request;
  $("more").disabled = true; // A second click would add the same cards again.
  try {
    const added = state.kind === "images" ? state.allImages.slice(start, start + PAGE)
      : (await askErrors(start)).items;
    if (number !== request) return; // another kind, class or threshold is shown now
    state.cards.push(...added);
    $("cards").append(...added.map(card));
    $("more").hidden = state.cards.length >= state.cardTotal || !added.length;
  } finally {
    $("more").disabled = false;
  }
}

function percent(value) {
  return value === null ? "–" : (100 * value).toFixed(1);
}

function renderTiles(summary) {
  const tiles = [
    ["Detected", summary.detected], ["False positives", summary.false_positive],
    ["Missed", summary.missed], ["Confusions", summary.confused],
    ["Precision", percent(summary.precision), "%"], ["Recall", percent(summary.recall), "%"],
    ["F1", percent(summary.F1)],
  ];
  $("tiles").replaceChildren(...tiles.map(([name, value, unit]) => element(
    "div", { class: "tile" }, element("dt", {}, name),
    element("dd", { class: "value" }, value.toLocaleString("en"),
      unit ? element("span", { class: "unit" }, unit) : null))));
}

function renderKinds(summary) {
  $("kinds").replaceChildren(...Object.entries(KINDS).map(([kind, { name }]) => element(
    "button",
    {
      type: "button", role: "tab", class: "chip", "data-kind": kind,
      "aria-selected": String(kind === state.kind),
      onclick: () => { state.kind = kind; refreshErrors().catch(showFailure); },
    },
    RESULT_COLOURS[kind] ? dot(RESULT_COLOURS[kind]) : null, name,
    element("b", {}, (kind === "images" ? state.numImages : summary[kind]).toLocaleString("en")))));
}

function card(item) {
  const name = (label) => info.classes[label];
  let source, title, score;
  if (state.kind === "images") {
    source = `api/images/${item.image}/thumbnail`;
    title = `${item.detected} of ${plural(item.objects, "object")}`;
    score = plural(item.errors, "error");
  } else {
    const [x0, y0, x1, y1] = item.box;
    const query = new URLSearchParams({ x0, y0, x1, y1, kind: item.kind });
    source = `api/images/${item.image}/crop?${query}`;
    title = item.kind === "missed" ? name(item.object)
      : item.kind === "confused" ? `${name(item.object)} → ${name(item.detection)}` : name(item.detection);
    score = item.kind !== "missed" ? `score ${item.score.toFixed(2)} · IoU ${item.iou.toFixed(2)}`
      : item.score > 0 ? `best score ${item.score.toFixed(2)}` : "no detection";
  }
  return element(
    "button",
    { type: "button", class: "card", title: item.file_name, onclick: () => openImage(item) },
    element("img", { src: source, alt: "", loading: "lazy", width: 320, height: 240 }),
    element("div", {}, element("b", {}, title), score, element("small", {}, item.file_name)));
}

function openImage(item) {
  state.focus = { image: item.image, box: item.box || null };
  state.list = [...new Set(state.cards.map((other) => other.image))];
  state.scroll = window.scrollY;
  location.hash = `#validation/${item.image}`;
}

async function showValidationImage(index) {
  if (!state.list.includes(index)) state.list = Array.from({ length: state.numImages }, (_, other) => other);
  const position = state.list.indexOf(index);
  $("previous").disabled = position <= 0;
  $("next").disabled = position >= state.list.length - 1;
  const view = await ask(`api/images/${index}`);
  view.name = view.file_name;
  view.address = `api/images/${index}/file`;
  view.focus = state.focus && state.focus.image === index ? state.focus.box : null;
  const isCurrent = () => location.hash === `#validation/${index}`;
  if (!isCurrent()) return;
  show(view);
  if (info.groups.length > 1) {
    Object.assign(view, await ask(`api/images/${index}/groups`));
    if (isCurrent()) show(view, true);
  } else view.pairs = null;
}

function step(offset) {
  const index = Number(location.hash.split("/")[1]);
  const next = state.list[state.list.indexOf(index) + offset];
  if (next === undefined) return;
  state.focus = null;
  location.hash = `#validation/${next}`;
}

function showFailure(error) {
  if (state.tab === "validation") message(describe(error), true);
  else status(describe(error), true);
}

// Views

function route() {
  const [tab, image] = location.hash.slice(1).split("/");
  state.tab = tab === "validation" ? "validation" : "images";
  for (const name of ["images", "validation"]) {
    $(`view-${name}`).hidden = name !== state.tab;
    if (name === state.tab) $(`tab-${name}`).setAttribute("aria-current", "page");
    else $(`tab-${name}`).removeAttribute("aria-current");
  }
  $(`slot-${state.tab}`).append($("viewer"));
  const isDetail = state.tab === "validation" && image !== undefined;
  $("back").hidden = $("previous").hidden = $("next").hidden = !isDetail;
  $("viewer").hidden = true;
  state.view = null;
  if (state.tab === "images") {
    showOwn(state.current);
    return;
  }
  if (!ready) {
    startValidation();
    return;
  }
  $("browser").hidden = isDetail;
  if (isDetail) showValidationImage(Number(image)).catch(showFailure);
  else refreshErrors().then(() => window.scrollTo(0, state.scroll || 0)).catch(showFailure);
}

function setScore(value) {
  state.score = value;
  render();
}

function debounce(action, milliseconds) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
}

/** Return the smallest detection that is shown at a point of the canvas, -1 for none. */
function detectionAt(event) {
  const view = state.view;
  const bounds = $("canvas").getBoundingClientRect();
  const x = ((event.clientX - bounds.left) / bounds.width) * view.width;
  const y = ((event.clientY - bounds.top) / bounds.height) * view.height;
  const current = scene();
  let best = -1, smallest = Infinity;
  for (const index of current.indices) {
    const [x0, y0, x1, y1] = current.detections[index].box;
    const area = (x1 - x0) * (y1 - y0);
    if (x >= x0 && x <= x1 && y >= y0 && y <= y1 && area < smallest) {
      best = index;
      smallest = area;
    }
  }
  return best;
}

function connect() {
  $("files").addEventListener("change", (event) => {
    addFiles(event.target.files);
    event.target.value = "";
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
  addEventListener("dragleave", () => $("drop").classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    addFiles(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => addFiles(event.clipboardData.files));
  addEventListener("hashchange", route);
  new ResizeObserver(debounce(draw, 30)).observe($("stage").parentElement);
  addEventListener("keydown", (event) => {
    if (["INPUT", "SELECT"].includes(event.target.tagName) || $("previous").hidden) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
    if (event.key === "Escape") location.hash = "#validation";
  });
  $("score").addEventListener("input", (event) => setScore(Number(event.target.value)));
  $("score-reset").addEventListener("click", () => setScore(info.score));
  $("group").addEventListener("input", (event) => {
    state.group = Number(event.target.value);
    render();
  });
  for (const id of ["show-labels", "show-masks", "show-truth", "by-result"]) {
    $(id).addEventListener("change", render);
  }
  const refreshSoon = debounce(() => refreshErrors().catch(showFailure), 120);
  $("errors-score").addEventListener("input", (event) => {
    state.score = Number(event.target.value);
    $("errors-score-value").textContent = state.score.toFixed(2);
    refreshSoon();
  });
  $("errors-class").addEventListener("change", (event) => {
    state.label = event.target.value;
    refreshErrors().catch(showFailure);
  });
  $("more").addEventListener("click", () => more().catch(showFailure));
  $("back").addEventListener("click", () => { location.hash = "#validation"; });
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("canvas").addEventListener("pointermove", (event) => light(detectionAt(event)));
  $("canvas").addEventListener("pointerleave", () => light(-1));
}

async function main() {
  connect();
  info = await ask("api/info");
  document.title = `${info.name} – groupdetr ui`;
  $("name").textContent = info.name;
  $("facts").textContent = [
    info.model, plural(info.num_groups, "group"),
    info.classes.length === 1 ? "1 class" : `${info.classes.length.toLocaleString("en")} classes`,
    `images of ${info.imgsz} pixels`, info.device, `groupdetr ${info.version}`,
  ].join(" · ");
  state.score = info.score;
  for (const id of ["score", "errors-score"]) $(id).min = info.min_score;
  $("score-reset").textContent = info.is_best_f1
    ? `best F1 of the run: ${info.score.toFixed(2)}` : `back to ${info.score.toFixed(2)}`;
  $("group").max = info.groups.length;
  $("group-control").hidden = info.groups.length < 2;
  $("note").hidden = !info.note;
  $("note").textContent = info.note;
  $("masks-switch").hidden = !info.masks;
  route();
}

main().catch((error) => status(describe(error), true));

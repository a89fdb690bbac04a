/* The gallery. Data arrive as scripts that call `archive`, since a page from a disk may load no JSON.
   Text of the archive (identities, class names, errors) enters the page as text nodes and attributes only, never as HTML. */
"use strict";

const folder = document.body.dataset.folder;
const PAGE_IMAGES = 60;
const THUMB_SIDE_PX = 360;

let summary = null;
const entries = []; // One per image: [id, ratio, confidence, entropy, changed, error kind, [[label, share, confidence]], photo]
const loadedChunks = new Set();
const waitingItems = new Map();
const items = new Map();

const ID = 0, RATIO = 1, CONFIDENCE = 2, ENTROPY = 3, CHANGED = 4, ERROR = 5, CLASSES = 6, PHOTO = 7;

globalThis.archive = {
  summary(value) { summary = value; start(); },
  index(number, rows) {
    const first = number * summary.chunk_images;
    rows.forEach((row, i) => { entries[first + i] = row; });
    loadedChunks.add(number);
  },
  item(number, value) {
    items.set(number, value);
    if (items.size > 400) items.delete(items.keys().next().value);
  },
};

/* ---------- small tools ---------- */

/* What the person has picked, kept in this browser for the run; saved as the list that `export --ids` takes. */
const picked = new Set();

function pick(id, on) {
  if (on) picked.add(id); else picked.delete(id);
  remember(`picked-${summary.run_id}`, JSON.stringify([...picked]));
  document.querySelectorAll("[data-pick]").forEach((button) => markPicked(button, picked.has(entries[button.dataset.pick][ID])));
  showPicked();
}

function markPicked(button, on) {
  button.setAttribute("aria-pressed", String(on));
  button.closest("#grid > li")?.toggleAttribute("data-picked", on);
}

function pickButton(n, text) {
  return make("button", {
    class: text ? "button pick-one" : "pick", type: "button", "data-pick": n, "aria-label": `Select ${entries[n][ID]}`,
    "aria-pressed": String(picked.has(entries[n][ID])), onclick: () => pick(entries[n][ID], !picked.has(entries[n][ID])),
  }, make("span", { "aria-hidden": "true" }, "✓"), text ? " Select" : "");
}

function showPicked() {
  const place = document.getElementById("picked");
  if (!place) return;
  place.hidden = !picked.size;
  place.replaceChildren(
    make("b", {}, counted(picked.size, "image")), " selected ",
    make("button", { class: "button", type: "button", id: "save-picked", onclick: savePicked }, "Save the list"),
    make("button", { class: "link", type: "button", id: "clear-picked", onclick: () => { picked.clear(); pick("", false); } }, "Clear selection"),
    make("span", {}, "for segment-archive export … --ids selection.txt"));
}

function savePicked() {
  // A line for each; what a line cannot hold as it is stands as a JSON string
  const lines = [...picked].map((id) => (/[\r\n]|^"|^\s|\s$/.test(id) ? JSON.stringify(id) : id));
  const address = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "text/plain" }));
  make("a", { href: address, download: "selection.txt" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "vars") for (const [key, v] of Object.entries(value)) element.style.setProperty(key, v);
    else if (name === "class") element.className = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

const number = new Intl.NumberFormat("en");
const percent = (share) => (share > 0 && share < 0.005 ? "<1%" : `${Math.round(100 * share)}%`);
const digits = (value, count = 2) => (value === null || value === undefined ? "–" : value.toFixed(count));
const lastPart = (id) => id.slice(id.replace(/\/+$/, "").lastIndexOf("/") + 1) || id;
const counted = (count, word) => `${number.format(count)} ${word}${count === 1 ? "" : "s"}`;

function remember(name, value) { try { localStorage.setItem(`segment-archive-${name}`, value); } catch { /* A private window */ } }
function recall(name) { try { return localStorage.getItem(`segment-archive-${name}`); } catch { return null; } }

function loadScript(source) {
  return new Promise((resolve) => {
    const script = make("script", { src: `${folder}/${source}` });
    script.onload = () => { script.remove(); resolve(true); };
    script.onerror = () => { script.remove(); resolve(false); };
    document.head.append(script);
  });
}

const numbered = (n) => `${String(Math.floor(n / 1000)).padStart(3, "0")}/${String(n).padStart(6, "0")}`;

function loadItem(n) {
  if (items.has(n)) return Promise.resolve(items.get(n));
  if (!waitingItems.has(n)) {
    waitingItems.set(n, loadScript(`items/${numbered(n)}.js`).then(() => { waitingItems.delete(n); return items.get(n) || null; }));
  }
  return waitingItems.get(n);
}

const loadChunk = (n) => (loadedChunks.has(n) ? Promise.resolve(true) : loadScript(`index-${String(n).padStart(3, "0")}.js`));
const allLoaded = () => loadedChunks.size === summary.chunks;

/* ---------- colours ---------- */

let classOf = new Map(); // By label

function prepareClasses() {
  for (const found of summary.classes) {
    if (found.label === null) continue;
    found.background = found.label === 0 && found.name === "background";
    found.pattern = found.background ? 0 : Math.floor((found.label - 1) / 7) % 3; // The palette has seven hues
    classOf.set(found.label, found);
  }
}

const colourOf = (found) => (look.colours === "clear" ? found.clear : found.colour);
const nameOf = (label) => (classOf.has(label) ? classOf.get(label).name : `label ${label}`);

function swatch(found) {
  const pattern = look.colours === "clear" ? ["", " striped", " dotted"][found.pattern || 0] : "";
  return make("span", { class: `swatch${pattern}`, "aria-hidden": "true", vars: { "--colour": colourOf(found) } });
}

/* ---------- masks ---------- */

function decodeRuns(text, size, wide) {
  const bytes = atob(text);
  const labels = wide ? new Uint16Array(size) : new Uint8Array(size);
  let at = 0, i = 0;
  while (i < bytes.length) {
    const label = bytes.charCodeAt(i++) + (wide ? bytes.charCodeAt(i++) * 256 : 0);
    let length = 0, shift = 0, byte;
    do { byte = bytes.charCodeAt(i++); length += (byte & 127) * 2 ** shift; shift += 7; } while (byte > 127);
    if (label) labels.fill(label, at, at + length);
    at += length;
  }
  return labels;
}

function scaled(labels, width, height, toWidth, toHeight) {
  if (width === toWidth && height === toHeight) return labels;
  const result = new labels.constructor(toWidth * toHeight);
  const columns = Array.from({ length: toWidth }, (_, x) => Math.floor(((2 * x + 1) * width) / (2 * toWidth)));
  for (let y = 0; y < toHeight; y++) {
    const row = Math.floor(((2 * y + 1) * height) / (2 * toHeight)) * width;
    for (let x = 0; x < toWidth; x++) result[y * toWidth + x] = labels[row + columns[x]];
  }
  return result;
}

function masksOf(item, side) {
  const [width, height] = item.shown;
  const scale = Math.min(1, side / Math.max(width, height));
  const toWidth = Math.max(1, Math.round(width * scale)), toHeight = Math.max(1, Math.round(height * scale));
  const decode = (text, wide) => (text ? scaled(decodeRuns(text, width * height, wide), width, height, toWidth, toHeight) : null);
  return { width: toWidth, height: toHeight, mask: decode(item.mask, item.wide), before: decode(item.before, item.wide), truth: decode(item.truth) };
}

function layerOf(masks, mode = look.mode) {
  if (mode === "before") return masks.before;
  if (mode === "truth") return masks.truth;
  return masks.mask;
}

/* Fill: the classes in their colours, drawn under the opacity of the page. Lines: white beside black, seen on any photograph. */
function paint(masks, fill, lines, lit = null, mode = look.mode) {
  const labels = layerOf(masks, mode);
  const { width, height } = masks;
  for (const canvas of [fill, lines]) { canvas.width = width; canvas.height = height; }
  if (!labels) return;
  const most = Math.max(256, ...Array.from(classOf.keys(), (label) => label + 1));
  const palette = new Uint32Array(most), pattern = new Uint8Array(most);
  const rgba = (hex, alpha = 255) => (alpha << 24 | parseInt(hex.slice(5, 7), 16) << 16 | parseInt(hex.slice(3, 5), 16) << 8 | parseInt(hex.slice(1, 3), 16)) >>> 0;
  for (const [label, found] of classOf) {
    if (found.background) continue;
    palette[label] = rgba(colourOf(found));
    pattern[label] = look.colours === "clear" ? found.pattern : 0;
  }
  const image = new ImageData(width, height), out = new Uint32Array(image.data.buffer);
  const against = mode === "changes" ? masks.before : mode === "wrong" ? masks.truth : null;
  const compared = mode === "changes" || mode === "wrong";
  const unsure = mode === "wrong" ? VOID : -1; // Where nobody says what is true, nothing is wrong
  const dark = rgba("#000000", 200), ink = rgba("#000000"), vivid = rgba("#ffd400");
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const label = labels[i];
      if (lit !== null) { if (label !== lit) out[i] = dark; continue; }
      if (compared) { if (against && against[i] !== label && against[i] !== unsure) out[i] = (x + y) % 6 < 1 ? ink : vivid; continue; }
      const colour = palette[label];
      if (!colour) continue;
      const kind = pattern[label];
      out[i] = (kind === 1 && (x + y) % 9 < 3) || (kind === 2 && x % 8 < 3 && y % 8 < 3) ? ink : colour;
    }
  }
  fill.getContext("2d").putImageData(image, 0, 0);
  const edges = new ImageData(width, height), edge = new Uint32Array(edges.data.buffer);
  const step = Math.max(width, height) > 640 ? 2 : 1;
  const light = rgba("#ffffff"), shade = rgba("#000000", 190);
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      const label = labels[i];
      if ((x + step < width && labels[i + step] !== label) || (y + step < height && labels[i + step * width] !== label)) edge[i] = light;
      else if ((x >= step && labels[i - step] !== label) || (y >= step && labels[i - step * width] !== label)) edge[i] = shade;
    }
  }
  lines.getContext("2d").putImageData(edges, 0, 0);
}

/* ---------- what the person has chosen ---------- */

const VOID = 255;
const MODES = [["photo", "Photo"], ["mask", "Mask"], ["overlay", "Overlay"], ["before", "Before CRF"], ["changes", "Changes"]];
const TRUTH_MODES = [["truth", "Truth"], ["wrong", "Wrong"]]; // Where the gallery has true masks
const look = { mode: "overlay", opacity: 55, lines: true, colours: "clear" };
// share: of each chosen class. A few pixels do not make a picture of it: `start` sets the floor that the summary names
const blank = { classes: [], share: 0, low: 0, high: 1, kind: "all", search: "", sort: "archive", page: 0 };
let asked = { ...blank };
let order = []; // Numbers of the images that fit, in the order asked for
let repaint = () => {}; // Draws again what is on the screen, after the look has changed

const SORTS = {
  archive: ["Archive order", null],
  name: ["Name", (a, b) => (a[ID] < b[ID] ? -1 : a[ID] > b[ID] ? 1 : 0)],
  doubt: ["Least confident first", byNumber((e) => e[CONFIDENCE])],
  confidence: ["Most confident first", byNumber((e) => -e[CONFIDENCE])],
  entropy: ["Highest entropy first", byNumber((e) => -e[ENTROPY])],
  changed: ["Most changed first", byNumber((e) => -e[CHANGED])],
  share: ["Largest share first", byNumber((e) => -shareOf(e))],
};

function byNumber(value) {
  return (a, b) => (a[CONFIDENCE] === null) - (b[CONFIDENCE] === null) || value(a) - value(b);
}

function shareOf(entry) { // Of the chosen classes, or of everything but background
  const wanted = asked.labels;
  let share = 0;
  for (const [label, part] of entry[CLASSES]) if (wanted.size ? wanted.has(label) : !(classOf.get(label) || {}).background) share += part;
  return share;
}

function fits(entry) {
  const { kind, search, low, high, share, labels } = asked;
  if (kind === "masks" ? entry[ERROR] !== null : kind === "errors" ? entry[ERROR] === null : kind !== "all" && entry[ERROR] !== kind) return false;
  if (search && !entry[ID].toLowerCase().includes(search)) return false;
  if (entry[ERROR] !== null) return !labels.size && !asked.unknownClass && low === 0 && high === 1 && share <= blank.share;
  if (entry[CONFIDENCE] !== null && (entry[CONFIDENCE] < low || entry[CONFIDENCE] > high)) return false;
  if (asked.unknownClass) return false;
  if (!labels.size) return share <= blank.share || shareOf(entry) >= share;
  for (const wanted of labels) if (!entry[CLASSES].some(([label, part]) => label === wanted && part >= share)) return false;
  return true;
}

function select() {
  const byName = new Map(summary.classes.map((found) => [found.name, found.label]));
  const wanted = asked.classes.map((name) => byName.get(name));
  asked.labels = new Set(wanted.filter((label) => label !== undefined && label !== null));
  asked.unknownClass = asked.labels.size < asked.classes.length;
  asked.search = asked.search.toLowerCase();
  order = [];
  entries.forEach((entry, n) => { if (fits(entry)) order.push(n); });
  const compare = (SORTS[asked.sort] || SORTS.archive)[1];
  if (compare) order.sort((a, b) => compare(entries[a], entries[b]) || a - b);
}

function hashOf(question) {
  const parameters = new URLSearchParams();
  question.classes.forEach((name) => parameters.append("class", name));
  for (const name of ["share", "low", "high", "kind", "search", "sort", "page"]) {
    if (question[name] !== blank[name]) parameters.set(name, String(question[name]));
  }
  const text = parameters.toString();
  return `#/${text ? `?${text}` : ""}`;
}

function questionOf(text) {
  const parameters = new URLSearchParams(text), question = { ...blank, classes: parameters.getAll("class") };
  for (const name of ["share", "low", "high", "page"]) {
    const value = Number(parameters.get(name) ?? blank[name]);
    question[name] = Number.isFinite(value) ? value : blank[name];
  }
  for (const name of ["kind", "search", "sort"]) question[name] = parameters.get(name) ?? blank[name];
  if (!(question.sort in SORTS)) question.sort = "archive";
  return question;
}

let ownHash = null; // Written by us: needs no new page
/* What is being typed or dragged is asked when the hand rests; whatever else happens first takes it along, or drops it */
let typed = {}, resting = null;

function askSoon(changes, milliseconds) {
  clearTimeout(resting);
  typed = { ...typed, ...changes };
  resting = setTimeout(ask, milliseconds, {});
}

function taken() {
  clearTimeout(resting);
  const changes = typed;
  typed = {};
  return changes;
}

function ask(changes) {
  asked = { ...asked, page: 0, ...taken(), ...changes };
  ownHash = hashOf(asked);
  if (location.hash !== ownHash) location.replace(ownHash);
  showResults();
}

/* ---------- controls shared by gallery and image ---------- */

const hasBefore = () => summary.before_available !== false;

function controls() {
  const page = document.documentElement;
  const apply = () => {
    page.dataset.mode = look.mode;
    page.dataset.lines = look.lines ? "on" : "off";
    page.style.setProperty("--opacity", look.opacity / 100);
  };
  const buttons = MODES.map(([mode, name]) => {
    const label = mode === "before" && summary.kind === "diff" ? "Run A" : mode === "mask" && summary.kind === "diff" ? "Run B" : name;
    const off = (mode === "before" || mode === "changes") && !hasBefore();
    return make("button", {
      type: "button", "data-mode-of": mode, disabled: off, "aria-pressed": String(look.mode === mode),
      title: off ? "This run kept no masks before the CRF; segment-archive run --keep-mask-before-crf keeps them." : `${label} (key ${MODES.findIndex(([m]) => m === mode) + 1})`,
      onclick: () => setMode(mode),
    }, label);
  });
  const opacity = make("input", {
    id: "opacity", type: "range", min: 0, max: 100, value: look.opacity,
    oninput: () => { look.opacity = Number(opacity.value); shown.textContent = `${look.opacity}%`; apply(); remember("opacity", look.opacity); },
  });
  const shown = make("output", { for: "opacity" }, `${look.opacity}%`);
  const lines = make("input", {
    id: "lines", type: "checkbox", onchange: () => { look.lines = lines.checked; apply(); remember("lines", look.lines ? "on" : "off"); },
  });
  lines.checked = look.lines;
  const colours = make("select", {
    id: "colours", "aria-label": "Colours of the classes",
    onchange: () => { look.colours = colours.value; remember("colours", look.colours); route(); },
  }, make("option", { value: "clear" }, "Clear colours"), make("option", { value: "voc" }, "VOC colours"));
  colours.value = look.colours;
  apply();
  return [
    make("div", { class: "modes", role: "group", "aria-label": "What is shown" }, buttons),
    make("label", { class: "control grow" }, "Opacity", opacity, shown),
    make("label", { class: "control" }, lines, "Outlines"),
    colours,
  ];
}

function setMode(mode) {
  if ((mode === "before" || mode === "changes") && !hasBefore()) return;
  const drawn = look.mode;
  look.mode = mode;
  document.documentElement.dataset.mode = mode;
  document.querySelectorAll("[data-mode-of]").forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.modeOf === mode)));
  const kinds = { before: 1, changes: 2, truth: 3, wrong: 4 };
  if ((kinds[drawn] || 0) !== (kinds[mode] || 0)) repaint();
}

/* ---------- gallery ---------- */

function describe(entry) {
  if (entry[ERROR] !== null) return `${entry[ID]}: no mask, ${entry[ERROR]}`;
  const found = entry[CLASSES].map(([label, share]) => `${nameOf(label)} ${percent(share)}`);
  return `${entry[ID]}: ${found.join(", ") || "empty mask"}`;
}

const briefly = (entry) => {
  const seen = entry[CLASSES].filter(([label]) => !(classOf.get(label) || {}).background);
  return (seen.length ? seen : entry[CLASSES]).slice(0, 3).map(([label, share]) => `${nameOf(label)} ${percent(share)}`).join(", ");
};

function picture(n, kind, eager) {
  const entry = entries[n];
  const frame = make("span", { class: "frame", vars: { "--ratio": entry[RATIO] } });
  if (entry[PHOTO]) {
    frame.append(make("img", { src: `${folder}/${kind}/${numbered(n)}.jpg`, alt: describe(entry), decoding: "async", loading: eager ? "eager" : "lazy" }));
  } else {
    frame.setAttribute("role", "img");
    frame.setAttribute("aria-label", describe(entry));
  }
  if (entry[ERROR] !== null) {
    if (!entry[PHOTO]) frame.append(make("span", { class: "failed", "aria-hidden": "true" }, make("b", {}, "No mask"), entry[ERROR].replaceAll("_", " ")));
    else frame.append(make("span", { class: "without" }, `no mask: ${entry[ERROR].replaceAll("_", " ")}`));
    return { frame };
  }
  frame.classList.add("masked");
  const fill = make("canvas", { class: "fill", "aria-hidden": "true" }), lines = make("canvas", { class: "lines", "aria-hidden": "true" });
  frame.append(fill, lines);
  if (!entry[PHOTO]) frame.append(make("span", { class: "without" }, "photograph not at hand"));
  return { frame, fill, lines };
}

function tile(n) {
  const entry = entries[n];
  const { frame, fill, lines } = picture(n, "thumbs", false);
  const measure = entry[ERROR] !== null ? "" : asked.sort === "entropy" ? `entropy ${digits(entry[ENTROPY])}`
    : asked.sort === "changed" ? `${summary.changed.toLowerCase()} ${percent(entry[CHANGED] ?? 0)}` : `conf. ${digits(entry[CONFIDENCE])}`;
  const element = make("li", { vars: { "--ratio": entry[RATIO] } },
    make("a", { class: "tile", href: `#/image/${encodeURIComponent(entry[ID])}`, "data-number": n },
      frame,
      make("span", { class: "caption", "aria-hidden": "true", title: entry[ID] },
        make("span", {}, lastPart(entry[ID])),
        make("span", { class: "what" }, entry[ERROR] !== null ? "no mask" : briefly(entry)),
        make("span", { class: "what" }, measure))),
    pickButton(n));
  element.toggleAttribute("data-picked", picked.has(entry[ID]));
  let masks = null;
  element.draw = () => { if (masks && fill) paint(masks, fill, lines); };
  if (fill) loadItem(n).then((item) => {
    if (!item || !element.isConnected) return;
    masks = masksOf(item, THUMB_SIDE_PX);
    element.draw();
  });
  return element;
}

function galleryPage() {
  document.title = `${summary.title} · Segment Archive`;
  const numErrors = Object.values(summary.errors).reduce((sum, count) => sum + count, 0);
  const head = make("div", { class: "head" },
    make("h1", {}, summary.title),
    make("ul", { class: "numbers" },
      make("li", {}, make("b", {}, number.format(summary.images)), " images"),
      make("li", {}, make("b", {}, number.format(summary.masks)), " masks"),
      make("li", {}, make("b", {}, number.format(numErrors)), " without mask"),
      make("li", {}, summary.model || ""),
      summary.kind === "run" ? make("li", {}, `run ${summary.run_id}`) : null),
    summary.finished ? null : make("p", { class: "notice warn" }, "This run is not finished: more rows may come, and counts are those of now."),
    summary.notice ? make("div", { class: "notice" }, summary.notice, make("pre", {}, summary.query),
      make("details", {}, make("summary", {}, "Show others"), make("pre", {}, summary.again))) : null);

  const sort = make("select", { id: "sort", "aria-label": "Order", onchange: () => ask({ sort: sort.value }) },
    Object.entries(SORTS).map(([value, [name]]) => make("option", { value }, value === "archive" && summary.kind === "diff" ? "As compared" : name)));
  sort.value = asked.sort;
  const filters = make("form", { class: "filters", id: "filters", "aria-label": "Filters", onsubmit: (event) => event.preventDefault() }, filterSections());
  const toggle = make("button", {
    id: "filters-toggle", type: "button", class: "button", "aria-expanded": "false", "aria-controls": "filters",
    onclick: () => { const open = filters.classList.toggle("open"); toggle.setAttribute("aria-expanded", String(open)); },
  }, "Filters");
  const main = document.getElementById("main");
  main.replaceChildren(head, make("div", { class: "body" },
    make("div", { class: "bar" }, controls(), sort, toggle),
    filters,
    make("section", { "aria-label": "Images" },
      make("p", { class: "count-line", role: "status", "aria-live": "polite", id: "count" }),
      make("p", { class: "count-line picked", id: "picked", hidden: true }),
      make("ul", { class: "grid", id: "grid" }),
      make("nav", { class: "pager", id: "pager", "aria-label": "Pages" }))));
  repaint = () => document.querySelectorAll("#grid > li").forEach((element) => element.draw());
  showResults();
  showPicked();
}

function filterSections() {
  const search = make("input", {
    type: "search", id: "search", placeholder: "Part of an identity", "aria-label": "Search by identity", autocomplete: "off", spellcheck: "false",
    oninput: () => askSoon({ search: search.value }, 120),
  });
  search.value = asked.search;
  const most = Math.max(1, ...summary.classes.map((found) => (found.background ? 0 : found.images)));
  const classes = summary.classes.filter((found) => found.shown > 0 && !found.background).map((found) => {
    const box = make("input", {
      type: "checkbox", value: found.name,
      onchange: () => ask({ classes: box.checked ? [...asked.classes, found.name] : asked.classes.filter((name) => name !== found.name) }),
    });
    box.checked = asked.classes.includes(found.name);
    return make("li", {}, make("label", {}, box, swatch(found), make("span", { class: "name", title: found.name }, found.name),
      make("span", { class: "count", "data-count-of": found.label }, number.format(found.shown)),
      make("span", { class: "level", "aria-hidden": "true", vars: { "--part": `${(100 * found.images) / most}%` } })));
  });
  const slider = (name, key, text, toValue, fromValue, max, step) => {
    const shown = make("output", {}, text(asked[key]));
    const input = make("input", {
      type: "range", min: 0, max, step, "aria-label": name, "data-key": key,
      oninput: () => { shown.textContent = text(toValue(Number(input.value))); askSoon({ [key]: toValue(Number(input.value)) }, 60); },
    });
    input.value = fromValue(asked[key]);
    return [input, shown];
  };
  const same = (value) => value;
  const [share, shareShown] = slider("Least share of the image", "share", percent, (v) => v / 100, (v) => 100 * v, 100, 1);
  const [low, lowShown] = slider("Least confidence", "low", digits, same, same, 1, 0.01);
  const [high, highShown] = slider("Greatest confidence", "high", digits, same, same, 1, 0.01);
  const shownErrors = new Map();
  entries.forEach((entry) => { if (entry[ERROR] !== null) shownErrors.set(entry[ERROR], (shownErrors.get(entry[ERROR]) || 0) + 1); });
  const kinds = [["all", "All images"], ["masks", "With a mask"], ["errors", "Without a mask"], ...Object.keys(summary.errors).map((kind) => [kind, kind.replaceAll("_", " ")])];
  const radios = kinds.map(([kind, name]) => {
    const box = make("input", { type: "radio", name: "kind", value: kind, onchange: () => ask({ kind }) });
    box.checked = asked.kind === kind;
    const count = summary.errors[kind];
    return make("label", {}, box, make("span", {}, name), count ? make("span", { class: "count" }, number.format(count)) : "");
  });
  return [
    make("section", {}, make("h3", {}, "Search"), search),
    make("section", {}, make("h3", {}, "Classes"), make("ul", { class: "classes" }, classes)),
    make("section", {}, make("h3", {}, "Share of the image"), make("label", { class: "pair" }, "at least", share, shareShown)),
    make("section", {}, make("h3", {}, "Confidence"), make("label", { class: "pair" }, "at least", low, lowShown), make("label", { class: "pair" }, "at most", high, highShown)),
    Object.keys(summary.errors).length ? make("section", { class: "kinds", role: "radiogroup", "aria-label": "Masks and errors" }, make("h3", {}, "Masks and errors"), radios) : null,
  ];
}

function clearAll() {
  taken();
  asked = { ...blank };
  ownHash = hashOf(asked);
  if (location.hash !== ownHash) location.replace(ownHash);
  galleryPage();
}

/* Images of this gallery in which each class has the share that is asked for. */
function countClasses() {
  if (!allLoaded()) return;
  const counts = new Map();
  for (const entry of entries) for (const [label, part] of entry[CLASSES]) if (part >= asked.share) counts.set(label, (counts.get(label) || 0) + 1);
  for (const place of document.querySelectorAll("[data-count-of]")) {
    const count = counts.get(Number(place.dataset.countOf)) || 0;
    place.replaceChildren(number.format(count), make("span", { class: "visually-hidden" }, ` images with ${percent(asked.share)} and more of it`));
  }
}

function showResults({ move = false, keepTiles = false } = {}) {
  const grid = document.getElementById("grid");
  if (!grid) return;
  select();
  const pages = Math.max(1, Math.ceil(order.length / PAGE_IMAGES));
  asked.page = Math.min(Math.max(0, Math.trunc(asked.page)), pages - 1);
  const first = asked.page * PAGE_IMAGES, here = order.slice(first, first + PAGE_IMAGES);
  const isFiltered = hashOf({ ...asked, page: 0, sort: "archive" }) !== "#/";
  const total = summary.shown;
  document.getElementById("count").replaceChildren(
    make("span", {}, make("b", {}, number.format(order.length)), isFiltered || !allLoaded() ? ` of ${counted(total, "image")}` : ` ${total === 1 ? "image" : "images"}`),
    allLoaded() ? "" : make("span", {}, `searched ${number.format(entries.length)} so far …`),
    isFiltered ? make("button", { class: "link", type: "button", onclick: clearAll }, "Clear filters") : "");
  countClasses();
  if (!keepTiles) grid.replaceChildren(...here.map(tile));
  const none = !here.length && allLoaded();
  const pager = document.getElementById("pager");
  pager.replaceChildren();
  if (none) pager.append(make("div", { class: "empty" }, make("p", {}, "No image fits all of these filters."), make("button", { class: "button", type: "button", onclick: clearAll }, "Clear filters")));
  else if (pages > 1) {
    const step = (by, text) => make("button", {
      class: "button", type: "button", disabled: asked.page + by < 0 || asked.page + by >= pages,
      onclick: () => { ask({ page: asked.page + by }); showResults({ move: true }); },
    }, text);
    pager.append(step(-1, "← Previous"), make("span", {}, `Page ${asked.page + 1} of ${number.format(pages)}`), step(1, "Next →"));
  }
  if (move) { document.querySelector(".bar").scrollIntoView(); grid.querySelector("a")?.focus({ preventScroll: true }); }
}

/* ---------- one image ---------- */

let zoom = null;
const MOST_ZOOM = 16;

/* Wheel, pinch, buttons and keys zoom a frame; dragging moves it. Everything in the frame follows three variables. */
function zoomable(frame, beside = null) {
  let scale = 1, x = 0, y = 0; // Offsets as parts of the frame
  const pointers = new Map();
  const apply = () => {
    x = Math.min(0, Math.max(1 - scale, x));
    y = Math.min(0, Math.max(1 - scale, y));
    for (const moved of [frame, beside]) {
      if (!moved) continue;
      for (const [name, value] of Object.entries({ "--zoom": scale, "--x": `${100 * x}%`, "--y": `${100 * y}%` })) moved.style.setProperty(name, value);
      moved.toggleAttribute("data-zoomed", scale > 1);
    }
  };
  const part = (event) => {
    const box = frame.getBoundingClientRect();
    return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
  };
  const by = (factor, to = { x: 0.5, y: 0.5 }) => {
    const next = Math.min(MOST_ZOOM, Math.max(1, scale * factor));
    x = to.x - ((to.x - x) * next) / scale;
    y = to.y - ((to.y - y) * next) / scale;
    scale = next;
    apply();
  };
  const fit = () => { scale = 1; apply(); };
  frame.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && scale === 1 && event.deltaY > 0) return; // The page scrolls on
    event.preventDefault();
    by(1.0015 ** -event.deltaY, part(event));
  }, { passive: false });
  frame.addEventListener("pointerdown", (event) => {
    pointers.set(event.pointerId, part(event));
    if (scale > 1) frame.setPointerCapture(event.pointerId);
  });
  frame.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId), now = part(event);
    if (!before) return;
    pointers.set(event.pointerId, now);
    if (pointers.size === 1) { x += now.x - before.x; y += now.y - before.y; apply(); return; }
    const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
    const apart = (a) => Math.hypot(a.x - other.x, a.y - other.y);
    by(apart(now) / Math.max(0.01, apart(before)), { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 });
  });
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) frame.addEventListener(end, (event) => pointers.delete(event.pointerId));
  frame.addEventListener("dblclick", (event) => { if (scale > 1) fit(); else by(3, part(event)); });
  frame.addEventListener("dragstart", (event) => event.preventDefault());
  return { by, fit, at: (event) => { const at = part(event); return { x: (at.x - x) / scale, y: (at.y - y) / scale }; } };
}

async function imagePage(id) {
  let n = entries.findIndex((entry) => entry && entry[ID] === id);
  for (let chunk = 0; n < 0 && chunk < summary.chunks; chunk++) {
    await loadChunk(chunk);
    n = entries.findIndex((entry) => entry && entry[ID] === id);
  }
  const main = document.getElementById("main");
  if (n < 0) {
    main.replaceChildren(make("div", { class: "empty" }, make("h1", {}, "Not in this gallery"), make("p", {}, id), make("a", { class: "button", href: "#/" }, "To the gallery")));
    return;
  }
  if (!order.includes(n)) { asked = { ...blank }; select(); }
  const item = await loadItem(n);
  if (routeOf().image !== id) return; // The person has gone on meanwhile
  const entry = entries[n], at = order.indexOf(n);
  document.title = `${lastPart(id)} · Segment Archive`;
  const { frame, fill, lines } = picture(n, "photos", true);
  const under = make("p", { class: "under", "aria-hidden": "true" }, entry[ERROR] === null ? "Point at the image to name what is there." : "");
  const masks = fill && item ? masksOf(item, 1e9) : null;
  const truth = masks && masks.truth ? picture(n, "photos", true) : null;
  zoom = zoomable(frame, truth && truth.frame);
  let lit = null;
  repaint = () => {
    if (masks) paint(masks, fill, lines, lit);
    if (truth) paint({ ...masks, mask: masks.truth, before: null, truth: null }, truth.fill, truth.lines, lit, "mask");
  };
  repaint();
  const neighbour = (by, text, key) => {
    const other = order[at + by];
    return other === undefined ? make("button", { class: "button", disabled: true }, text)
      : make("a", { class: "button", href: `#/image/${encodeURIComponent(entries[other][ID])}`, id: `to-${key}` }, text);
  };
  const rows = (item ? item.classes : []).map(([label, pixels, confidence, box]) => {
    const found = classOf.get(label) || { name: nameOf(label), colour: "#888888", safe: "#888888" };
    const share = (entry[CLASSES].find(([l]) => l === label) || [0, 0])[1];
    const button = make("button", { class: "button-row", type: "button", "aria-pressed": "false", title: "Show only this class" }, swatch(found), make("span", {}, found.name));
    const row = make("tr", { "data-label": label }, make("td", {}, button),
      make("td", { class: "number" }, percent(share)), make("td", { class: "number" }, number.format(pixels)), make("td", { class: "number" }, digits(confidence)));
    const light = (on) => {
      lit = on ? label : null;
      frame.toggleAttribute("data-lit", on);
      frame.querySelector(".box")?.remove();
      for (const other of row.parentNode.children) other.classList.toggle("lit", on && other === row);
      if (on && masks) {
        const [width, height] = item.mask_size, [x0, y0, x1, y1] = box;
        const mark = make("span", { class: "box", "aria-hidden": "true" });
        Object.assign(mark.style, { left: `${(100 * x0) / width}%`, top: `${(100 * y0) / height}%`, width: `${(100 * (x1 - x0)) / width}%`, height: `${(100 * (y1 - y0)) / height}%` });
        frame.append(mark);
      }
      repaint();
    };
    const press = (on) => {
      for (const other of row.parentNode.querySelectorAll("button")) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(on));
      light(on);
    };
    const pressed = () => button.getAttribute("aria-pressed") === "true";
    button.addEventListener("click", () => press(!pressed()));
    row.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") light(true); });
    row.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse" && !pressed()) light(false); });
    return row;
  });
  if (masks) frame.addEventListener("pointermove", (event) => {
    const labels = layerOf(masks);
    const at = zoom.at(event);
    const x = Math.floor(at.x * masks.width), y = Math.floor(at.y * masks.height);
    if (labels && x >= 0 && y >= 0 && x < masks.width && y < masks.height) under.textContent = nameOf(labels[y * masks.width + x]);
  });
  const size = (pair) => (pair && pair[0] ? `${number.format(pair[0])} × ${number.format(pair[1])} px` : null);
  const facts = [
    ["Confidence", entry[CONFIDENCE] === null ? null : digits(entry[CONFIDENCE], 3)],
    ["Entropy", entry[ENTROPY] === null ? null : `${digits(entry[ENTROPY], 3)} nats`],
    [summary.changed, entry[CHANGED] === null ? null : `${(100 * entry[CHANGED]).toFixed(2)}% of the pixels`],
    ["Photograph", item && size(item.size)], ["Mask", item && size(item.mask_size)],
    ["File size", item && item.bytes !== null ? `${number.format(Math.max(1, Math.round(item.bytes / 1000)))} kB` : null],
    ["Scored on", item && item.device], ["Model", summary.model], ["Read from", item && item.uri],
  ].filter(([, value]) => value);
  const back = make("a", { class: "button", href: hashOf(asked), id: "back" }, "← Gallery");
  main.replaceChildren(make("article", { class: "image", "data-image": n },
    make("div", { class: "way" }, back, neighbour(-1, "← Previous", "previous"), neighbour(1, "Next →", "next"), pickButton(n, true),
      make("span", { class: "place" }, `${number.format(at + 1)} of ${number.format(order.length)}`)),
    make("div", { class: "bar way" }, controls()),
    make("div", { class: "stage" },
      truth ? make("div", { class: "beside" }, make("figure", {}, frame, make("figcaption", {}, "Prediction")), make("figure", { id: "truth" }, truth.frame, make("figcaption", {}, "Truth"))) : frame,
      make("div", { class: "zoom", role: "group", "aria-label": "Zoom" },
      make("button", { class: "button", type: "button", id: "zoom-out", "aria-label": "Zoom out", onclick: () => zoom.by(1 / 1.5) }, "−"),
      make("button", { class: "button", type: "button", id: "zoom-fit", "aria-label": "Fit the whole image", onclick: () => zoom.fit() }, "Fit"),
      make("button", { class: "button", type: "button", id: "zoom-in", "aria-label": "Zoom in", onclick: () => zoom.by(1.5) }, "+")), under),
    make("div", { class: "panel" },
      make("h1", { id: "image-title" }, id),
      entry[ERROR] === null ? null : make("p", { class: "notice warn" }, `No mask (${entry[ERROR].replaceAll("_", " ")}): ${item && item.error ? item.error : ""}`),
      entry[ERROR] === null && item && item.photo ? make("p", { class: "notice" }, `The photograph is not shown: ${item.photo}.`) : null,
      rows.length ? make("section", { "aria-label": "Classes in the mask" },
        make("table", { class: "legend" }, make("caption", { class: "visually-hidden" }, "Classes in the mask; a press shows one alone"),
          make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Class"), make("th", { scope: "col", class: "number" }, "Share"), make("th", { scope: "col", class: "number" }, "Pixels"), make("th", { scope: "col", class: "number" }, "Conf."))),
          make("tbody", {}, rows))) : null,
      make("section", { "aria-label": "Facts" }, make("dl", {}, facts.map(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]))),
      make("p", { class: "keys" }, make("kbd", {}, "←"), " ", make("kbd", {}, "→"), " neighbours  ", make("kbd", {}, "1"), "–", make("kbd", {}, String(MODES.length)), " view  ", make("kbd", {}, "["), " ", make("kbd", {}, "]"), " opacity  ", make("kbd", {}, "o"), " outlines  ", make("kbd", {}, "+"), " ", make("kbd", {}, "-"), " ", make("kbd", {}, "0"), " zoom  ", make("kbd", {}, "s"), " select  ", make("kbd", {}, "Esc"), " gallery"))));
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
}

/* ---------- the run ---------- */

/* How confident each class is in the images of this gallery that hold it: ten bars from 0 to 1. */
function histograms() {
  const bins = new Map();
  for (const entry of entries) {
    for (const [label, share, confidence] of entry[CLASSES]) {
      if (share < summary.floor || confidence === null) continue;
      if (!bins.has(label)) bins.set(label, new Array(10).fill(0));
      bins.get(label)[Math.min(9, Math.floor(10 * confidence))] += 1;
    }
  }
  const rows = summary.classes.filter((found) => bins.has(found.label) && !found.background).map((found) => {
    const counts = bins.get(found.label), most = Math.max(...counts), total = counts.reduce((sum, count) => sum + count, 0);
    const told = counts.map((count, i) => (count ? `${(i / 10).toFixed(1)} to ${((i + 1) / 10).toFixed(1)}: ${count}` : null)).filter(Boolean).join(", ");
    return make("li", {}, swatch(found), make("span", {}, found.name),
      make("span", { class: "bins", role: "img", "aria-label": `Confidence of ${found.name}, images from ${told}`, title: told },
        counts.map((count) => make("span", { vars: { "--part": `${(100 * count) / most}%` } }))),
      make("span", { class: "value" }, counted(total, "image")));
  });
  return rows.length ? make("section", { "aria-label": "Confidence by class" }, make("h2", {}, "Confidence by class"),
    make("p", { class: "muted" }, `From 0 on the left to 1 on the right; images of this gallery with ${percent(summary.floor)} and more of the class`),
    make("ul", { class: "histogram confidences" }, rows)) : null;
}

function runPage() {
  document.title = `About ${summary.title} · Segment Archive`;
  const bars = (list, kind, link) => {
    const most = Math.max(1e-9, ...list.filter(([, , , found]) => !found?.background).map(([, value]) => value)); // It is everywhere
    return make("ul", { class: `histogram${kind}` }, list.map(([name, value, told, found]) => make("li", {},
      found ? swatch(found) : make("span"),
      link ? make("a", { href: link(name) }, kind === " bad" ? name.replaceAll("_", " ") : name) : make("span", {}, name),
      make("span", { class: "level", "aria-hidden": "true", vars: { "--part": `${Math.min(100, Math.max(0.7, (100 * value) / most))}%` } }),
      make("span", { class: "value" }, told))));
  };
  const classes = [...summary.classes].sort((a, b) => (a.background || false) - (b.background || false)).map((found) => [found.name, found.images, `${number.format(found.images)} · ${percent(found.pixel_share)}`, found.label === null ? null : found]);
  const errors = Object.entries(summary.errors).sort((a, b) => b[1] - a[1]).map(([kind, count]) => [kind, count, counted(count, "image")]);
  const agreement = summary.agreement ? summary.agreement.map(([name, value]) => [name, value ?? 0, value === null ? "–" : value.toFixed(3), summary.classes.find((found) => found.name === name)]) : null;
  const main = document.getElementById("main");
  main.replaceChildren(make("div", { class: "about" },
    make("section", {}, make("h1", {}, summary.title), make("p", { class: "muted" }, `Gallery of ${counted(summary.shown, "image")}, made ${summary.made.replace("T", " ").replace("+00:00", " UTC")}`)),
    make("div", { class: "columns" },
      make("section", {}, make("h2", {}, "The run"), make("dl", {}, summary.facts.map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]))),
      agreement ? make("section", {}, make("h2", {}, "Agreement (IoU between the two runs)"), bars(agreement, "", null)) : null,
      make("section", {}, make("h2", {}, "Classes"), make("p", { class: "muted" }, "Images that hold the class · its share of all pixels"), bars(classes, "", (name) => hashOf({ ...blank, classes: [name] }))),
      histograms(),
      make("section", {}, make("h2", {}, "Errors by reason"), errors.length ? bars(errors, " bad", (kind) => hashOf({ ...blank, kind })) : make("p", { class: "muted" }, "None: every image has a mask."))),
    make("section", {}, make("h2", {}, "What this gallery shows"), make("pre", {}, summary.query), make("p", { class: "muted" }, "Another selection:"), make("pre", {}, summary.again)),
    make("section", {}, make("h2", {}, "Keys"), make("p", { class: "keys" },
      make("kbd", {}, "1"), "–", make("kbd", {}, String(MODES.length)), ` ${MODES.map(([, name]) => name.toLowerCase()).join(", ")}   `, make("kbd", {}, "["), " ", make("kbd", {}, "]"), " opacity   ", make("kbd", {}, "o"), " outlines   ",
      make("kbd", {}, "/"), " search   ", make("kbd", {}, "←"), " ", make("kbd", {}, "→"), " ", make("kbd", {}, "↑"), " ", make("kbd", {}, "↓"), " from image to image   ", make("kbd", {}, "Esc"), " back to the gallery"))));
  main.focus({ preventScroll: true });
  scrollTo(0, 0);
}

/* ---------- where we are ---------- */

function routeOf() {
  const hash = location.hash.slice(1);
  if (hash.startsWith("/image/")) {
    try { return { image: decodeURIComponent(hash.slice(7)) }; } catch { return { image: hash.slice(7) }; }
  }
  if (hash === "/run") return { run: true };
  return { gallery: hash.startsWith("/?") ? hash.slice(2) : "" };
}

let cameFrom = null;
function route() {
  taken();
  const where = routeOf();
  document.getElementById("to-gallery").toggleAttribute("aria-current", !where.run);
  document.getElementById("to-run").toggleAttribute("aria-current", Boolean(where.run));
  for (const link of document.querySelectorAll(".top nav a")) if (link.hasAttribute("aria-current")) link.setAttribute("aria-current", "page");
  document.getElementById("to-gallery").href = where.gallery === undefined ? hashOf(asked) : "#/";
  if (where.image !== undefined) { cameFrom = where.image; imagePage(where.image); return; }
  if (where.run) { runPage(); return; }
  asked = questionOf(where.gallery);
  galleryPage();
  const tileLeft = cameFrom && [...document.querySelectorAll(".tile")].find((link) => entries[link.dataset.number][ID] === cameFrom);
  if (tileLeft) { tileLeft.scrollIntoView({ block: "center" }); tileLeft.focus({ preventScroll: true }); }
  cameFrom = null;
}

addEventListener("hashchange", () => {
  if (location.hash === ownHash) { ownHash = null; return; }
  ownHash = null;
  route();
});

addEventListener("keydown", (event) => {
  if (!summary || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches?.("input:not([type=checkbox]):not([type=radio]), select, textarea");
  if (event.key === "Escape") {
    if (document.querySelector("article.image, .about")) location.hash = hashOf(asked);
    else if (typing) event.target.blur();
    return;
  }
  if (typing) return;
  const mode = MODES[Number(event.key) - 1];
  if (mode) setMode(mode[0]);
  else if (event.key === "o") document.getElementById("lines")?.click();
  else if (event.key === "[" || event.key === "]") {
    const slider = document.getElementById("opacity");
    if (slider) { slider.value = Number(slider.value) + (event.key === "]" ? 10 : -10); slider.dispatchEvent(new Event("input")); }
  } else if (event.key === "/") {
    const search = document.getElementById("search");
    if (search) { event.preventDefault(); document.getElementById("filters").classList.add("open"); search.focus(); search.select(); }
  } else if (document.querySelector("article.image")) {
    if (event.key === "ArrowLeft") document.getElementById("to-previous")?.click();
    if (event.key === "ArrowRight") document.getElementById("to-next")?.click();
    if (event.key === "+" || event.key === "=") zoom?.by(1.5);
    if (event.key === "-") zoom?.by(1 / 1.5);
    if (event.key === "0") zoom?.fit();
    if (event.key === "s") document.querySelector("article.image [data-pick]")?.click();
  } else if (event.key.startsWith("Arrow")) walk(event);
});

function walk(event) {
  const tiles = [...document.querySelectorAll(".tile")], at = tiles.indexOf(document.activeElement);
  if (at < 0) return;
  let to = at + ({ ArrowLeft: -1, ArrowRight: 1 }[event.key] || 0);
  if (event.key === "ArrowUp" || event.key === "ArrowDown") {
    const here = tiles[at].getBoundingClientRect(), down = event.key === "ArrowDown";
    const others = tiles.map((t, i) => [t.getBoundingClientRect(), i]).filter(([box]) => (down ? box.top > here.top + 5 : box.top < here.top - 5));
    if (!others.length) return;
    const line = down ? Math.min(...others.map(([box]) => box.top)) : Math.max(...others.map(([box]) => box.top));
    const middle = here.left + here.width / 2;
    to = others.filter(([box]) => Math.abs(box.top - line) < 5).sort((a, b) => Math.abs(a[0].left + a[0].width / 2 - middle) - Math.abs(b[0].left + b[0].width / 2 - middle))[0][1];
  }
  if (tiles[to]) { event.preventDefault(); tiles[to].focus(); }
}

function chooseTheme(theme) { if (theme) document.documentElement.dataset.theme = theme; else delete document.documentElement.dataset.theme; }

document.getElementById("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  chooseTheme(now === "dark" ? "light" : "dark");
  remember("theme", document.documentElement.dataset.theme);
});

async function start() {
  chooseTheme(recall("theme"));
  if (recall("colours") === "voc") look.colours = "voc";
  if (recall("lines") === "off") look.lines = false;
  const opacity = Number(recall("opacity") ?? look.opacity);
  if (opacity >= 0 && opacity <= 100) look.opacity = opacity;
  try { for (const id of JSON.parse(recall(`picked-${summary.run_id}`) || "[]")) picked.add(id); } catch { /* Not ours */ }
  blank.share = summary.floor;
  asked = { ...blank };
  if (summary.truths) MODES.push(...TRUTH_MODES);
  prepareClasses();
  await loadChunk(0);
  route();
  for (let chunk = 1; chunk < summary.chunks; chunk++) {
    await loadChunk(chunk);
    await new Promise((resolve) => setTimeout(resolve, 0)); // The person goes first
  }
  // Unfiltered and unsorted, the tiles on the screen are right already, and only the counts are not
  const isPlain = hashOf({ ...asked, page: 0 }) === "#/" && asked.page === 0;
  if (summary.chunks > 1) showResults({ keepTiles: isPlain });
  document.documentElement.dataset.ready = "true";
}

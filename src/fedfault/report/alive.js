// Makes the drawn figures of a page answer: values under the pointer or by arrow keys, lines that can be taken away, one
// client found among many, rounds counted in simulated time or in bytes. Without it the page shows and says the same.
// The numbers are in the element #values (fedfault/report/values.py); groups of a picture have the attribute data-part.
// scales.js, which stands before this, has placeX, placeY and bend.
const page = JSON.parse(document.getElementById("values").textContent);
const SVG = "http://www.w3.org/2000/svg";
const MOST = 12; // values in a tip, and lines with a button of their own
const state = {scale: null, client: null}; // a member of page.scales or null for rounds; a place in page.clients or null

function make(tag, attributes = {}, ...children) {
  const node = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function format(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const text = size && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  return text.replace("-", "−");
}

// An amount in a unit that suits it: 90 s, 12.5 min, 3.2 h; 300 B, 4.1 MB.
function measure(value, unit) {
  const steps = unit === "s" ? [["h", 3600, 36000], ["min", 60, 600], ["s", 1, 0]]
    : [["GB", 1e9, 1e9], ["MB", 1e6, 1e6], ["kB", 1e3, 1e3], ["B", 1, 0]];
  const [name, size] = steps.find(step => value >= step[2]) ?? steps.at(-1);
  return `${Number((value / size).toPrecision(3))} ${name}`;
}

class Figure {
  constructor(node, name, about) {
    Object.assign(this, about, {node, name, hidden: new Set(), probes: []});
    this.picture = node.querySelector(".picture");
    this.svgs = [...this.picture.querySelectorAll("svg")];
    this.title = node.closest("section").querySelector("h2").textContent;
    this.tip = make("div", {class: "tip", hidden: ""});
    this.panels.forEach((panel, k) => this.addProbe(panel, k));
    this.picture.append(this.tip);
    this.addTools();
  }

  // The drawing that is to be seen: which one depends on the window and on the theme.
  get shown() { return this.svgs.findIndex(svg => getComputedStyle(svg).display !== "none"); }

  // A panel answers to the pointer and, as a slider, to arrow keys.
  addProbe(panel, k) {
    panel.stops = panel.cells ? panel.cells.columns.map((_, c) => panel.cells.first + c)
      : [...new Set(panel.series.flatMap(s => s.x))].sort((a, b) => a - b);
    if (!panel.stops.length) return;
    const label = [this.title, panel.title].filter(Boolean).join(": ");
    const limits = {"aria-valuemin": 0, "aria-valuemax": Math.max(panel.stops.length - 1, 0), "aria-valuenow": 0};
    const probe = make("div", {class: "probe", role: "slider", tabindex: 0, "aria-label": `Values of ${label}`, ...limits}, make("i"));
    const at = {stop: panel.stops.length - 1, row: 0};
    probe.addEventListener("pointermove", event => this.follow(event, probe, panel, k, at));
    probe.addEventListener("pointerdown", event => this.follow(event, probe, panel, k, at));
    probe.addEventListener("pointerleave", () => this.quieten(probe));
    probe.addEventListener("blur", () => this.quieten(probe));
    probe.addEventListener("focus", () => probe.matches(":focus-visible") && this.tell(probe, panel, k, at));
    probe.addEventListener("keydown", event => {
      const steps = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Home: [-1e9, 0], End: [1e9, 0]};
      if (event.key === "Escape") return this.quieten(probe);
      if (!(event.key in steps)) return;
      event.preventDefault();
      let [right, down] = steps[event.key];
      if (!panel.cells && down) [right, down] = [-down, 0]; // up is further, as with every slider
      at.stop = Math.min(Math.max(at.stop + right, 0), panel.stops.length - 1);
      at.row = Math.min(Math.max(at.row + down, 0), (panel.cells?.rows.length ?? 1) - 1);
      this.tell(probe, panel, k, at);
    });
    probe.setAttribute("aria-valuetext", "use the arrow keys");
    this.probes.push([probe, k]);
    this.picture.append(probe);
  }

  follow(event, probe, panel, k, at) {
    const area = probe.getBoundingClientRect(), place = this.places[this.shown][k], [left, , width] = place.box;
    const x = left + width * (event.clientX - area.left) / area.width;
    const far = panel.stops.map(stop => Math.abs(placeX(panel, place, stop) - x));
    at.stop = far.indexOf(Math.min(...far));
    at.share = (event.clientY - area.top) / area.height;
    if (panel.cells) at.row = Math.min(Math.max(Math.floor(at.share * panel.cells.rows.length), 0), panel.cells.rows.length - 1);
    this.tell(probe, panel, k, at);
  }

  // Show and say the values at a stop.
  tell(probe, panel, k, at) {
    const place = this.places[this.shown][k], x = panel.stops[at.stop], [left, , width] = place.box;
    const rows = panel.cells ? this.readCell(panel, at) : this.readLines(panel, k, x, place, at.share);
    const head = this.nameStop(panel, at, x);
    this.tip.replaceChildren(make("b", {}, head), ...rows.map(([name, value, colour]) => {
      const sign = make("span", {class: "sign", ...(colour ? {style: `background: var(--${colour})`} : {})});
      return make("div", {}, ...(colour === null ? [] : [sign]), `${name} `, make("em", {}, format(value)));
    }));
    const part = (placeX(panel, place, x) - left) / width;
    probe.firstChild.style.left = `${100 * part}%`;
    probe.classList.add("active");
    this.tip.hidden = false;
    const right = probe.offsetLeft + part * probe.offsetWidth, room = this.picture.clientWidth - this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(right + 14 > room ? right - this.tip.offsetWidth - 14 : right + 14, room))}px`;
    this.tip.style.top = `${probe.offsetTop + 6}px`;
    probe.setAttribute("aria-valuenow", at.stop);
    probe.setAttribute("aria-valuetext", `${head}: ${rows.map(([name, value]) => `${name} ${format(value)}`).join(", ")}`);
  }

  quieten(probe) {
    this.tip.hidden = true;
    probe.classList.remove("active");
  }

  nameStop(panel, at, x) {
    if (panel.cells) return `${panel.cells.rows[at.row]}, ${panel.cells.columns[at.stop]}`;
    if (!panel.rounds) return `${panel.x}: ${format(x)}`;
    const there = page.rounds.indexOf(x);
    return [`round ${x}`, ...page.scales.map(s => there < 0 ? "" : measure(s.values[there], s.unit))].filter(Boolean).join(" · ");
  }

  readCell(panel, at) {
    return [[panel.cells.name, panel.cells.values[at.row][at.stop], null]];
  }

  // The values of the lines that are shown, of many those nearest to the pointer, with the client that was looked for.
  readLines(panel, k, x, place, share) {
    const found = [];
    panel.series.forEach((s, i) => {
      const there = s.x.indexOf(x);
      if (there >= 0 && !this.hidden.has(`${k} ${i}`)) found.push([s.name, s.y[there], s.colour]);
    });
    const own = k === 0 ? this.readOwn() : null, there = own ? page.own.at.indexOf(x) : -1;
    if (found.length > MOST) {
      const y = row => row[1] === null ? 0 : (placeY(place, row[1]) - place.box[1]) / place.box[3];
      const kept = [...found].sort((a, b) => Math.abs(y(a) - (share ?? .5)) - Math.abs(y(b) - (share ?? .5))).slice(0, MOST);
      found.splice(0, found.length, ...found.filter(row => kept.includes(row)));
    }
    if (there >= 0) found.unshift([page.clients[state.client], own[there], "alarm"]);
    return found;
  }

  // The values of the client that was looked for, as this figure shows clients; null where it does not.
  readOwn() {
    if (!this.own || !page.own || state.client === null) return null;
    const losses = page.own.losses[state.client];
    return this.own === "loss" ? losses : losses.map((v, i) => i === 0 || v === null || losses[0] === null ? null : losses[0] - v);
  }

  addTools() {
    const tools = make("div", {class: "tools", role: "group", "aria-label": `${this.title}: how it is shown`});
    if (page.scales.length && this.panels.some(panel => panel.rounds)) tools.append(makeScaleChoice());
    this.addSwitches(tools);
    const rows = this.panels.some(panel => panel.cells?.rows.some(row => page.clients.includes(row)));
    if (page.clients.length > 1 && (rows || (this.own && page.own))) tools.append(makeSearch());
    if (tools.childElementCount) this.picture.after(tools);
  }

  // What has a button: every line, which may be in several panels by one name and colour, and those of a panel that are drawn alike.
  groupLines() {
    const groups = new Map();
    const add = (name, line, colour) => groups.set(`${name} ${colour}`, [name, [...(groups.get(`${name} ${colour}`)?.[1] ?? []), line], colour]);
    this.panels.forEach((panel, k) => {
      const drawn = panel.series.map((s, i) => [s, i]).filter(([, i]) => this.svgs[0].querySelector(`[data-part="line ${k} ${i}"]`));
      if (drawn.length < 2) return;
      const alike = drawn.filter(([s]) => s.colour === "muted");
      drawn.filter(([s]) => s.colour !== "muted").slice(0, MOST).forEach(([s, i]) => add(s.name, `${k} ${i}`, s.colour));
      alike.forEach(([s, i]) => add(alike.length > 1 ? `${alike.length} others` : s.name, `${k} ${i}`, "muted"));
    });
    return groups.values();
  }

  addSwitches(tools) {
    for (const [name, lines, colour] of this.groupLines()) {
      const sign = make("span", {class: "sign", style: `background: var(--${colour})`});
      const button = make("button", {type: "button", "aria-pressed": "true"}, sign, name);
      button.addEventListener("click", () => {
        const shown = button.getAttribute("aria-pressed") === "true";
        button.setAttribute("aria-pressed", String(!shown));
        for (const line of lines) this.hidden[shown ? "add" : "delete"](line);
        this.update();
      });
      tools.append(button);
    }
  }

  // Bring the drawings in line with what was chosen; plain: as they were drawn, for paper.
  update(plain = false) {
    this.svgs.forEach((svg, which) => {
      for (const part of svg.querySelectorAll('[data-part^="line "]'))
        part.style.display = !plain && this.hidden.has(part.dataset.part.slice(5)) ? "none" : "";
      svg.querySelectorAll(".own").forEach(node => node.remove());
      this.panels.forEach((panel, k) => {
        const place = this.places[which][k];
        if (panel.rounds && (state.scale || svg.dataset.bent)) bend(svg, k, panel, place);
        if (!plain && state.client !== null) this.drawOwn(svg, panel, k, place);
      });
      svg.dataset.bent = state.scale ? "yes" : "";
    });
    const place = this.places[this.shown], svg = this.svgs[this.shown];
    if (!svg) return;
    const {width, height} = svg.viewBox.baseVal;
    this.probes.forEach(([probe, k]) => {
      const [left, top, w, h] = place[k].box;
      Object.assign(probe.style, {left: `${100 * left / width}%`, top: `${100 * top / height}%`, width: `${100 * w / width}%`, height: `${100 * h / height}%`});
    });
  }

  // The line of the client that was looked for, or a frame around its row and its column.
  drawOwn(svg, panel, k, place) {
    const [left, top, width, height] = place.box, name = page.clients[state.client];
    const values = k === 0 ? this.readOwn() : null;
    if (values) {
      const points = page.own.at.map((r, i) => [r, values[i]]).filter(([, v]) => v !== null && (!place.log || v > 0));
      const bounded = y => Math.min(Math.max(placeY(place, y), top), top + height);
      const d = points.map(([r, v], i) => `${i ? "L" : "M"} ${placeX(panel, place, r)} ${bounded(v)}`).join(" ");
      svg.append(make("svg:path", {class: "own", d}));
    }
    if (!panel.cells) return;
    const row = panel.cells.rows.indexOf(name), column = panel.cells.columns.indexOf(name);
    const tall = height / panel.cells.rows.length, wide = width / panel.cells.columns.length;
    if (row >= 0) svg.append(make("svg:rect", {class: "own", x: left, y: top + row * tall, width, height: tall}));
    if (column >= 0) svg.append(make("svg:rect", {class: "own", x: left + column * wide, y: top, width: wide, height}));
  }
}

function makeScaleChoice() {
  const choice = make("select", {class: "scale"}, ...["round", ...page.scales.map(s => s.name)].map(name => make("option", {}, name)));
  choice.addEventListener("change", () => {
    state.scale = page.scales.find(s => s.name === choice.value) ?? null;
    document.querySelectorAll("select.scale").forEach(other => { other.value = choice.value; });
    updateAll();
  });
  return make("label", {}, "over ", choice);
}

function makeSearch() {
  const field = make("input", {type: "search", class: "client", list: "clients", size: 14, placeholder: "number or name"});
  field.addEventListener("input", () => {
    const asked = field.value.trim().toLowerCase().replace(/^client\s+/, "");
    const names = page.clients.map(name => name.toLowerCase().replace("client ", ""));
    const exact = names.findIndex(name => name === asked || name.split(" ")[0] === asked || name.endsWith(`(${asked})`));
    const found = exact >= 0 || !asked ? exact : names.findIndex(name => name.includes(asked));
    state.client = found < 0 ? null : found;
    field.setAttribute("aria-invalid", String(Boolean(asked) && found < 0));
    document.querySelectorAll("input.client").forEach(other => { if (other !== field) other.value = field.value; });
    markRow();
    updateAll();
  });
  return make("label", {}, "find client ", field);
}

// The client that was looked for in the table of clients, opened where it is folded.
function markRow() {
  const heads = [...document.querySelectorAll('section[aria-labelledby="client-table"] tbody th')];
  for (const head of heads) head.parentNode.classList.remove("found");
  const found = state.client === null ? null : heads.find(head => head.textContent === page.clients[state.client].replace("client ", ""));
  if (!found) return;
  found.parentNode.classList.add("found");
  found.closest("details")?.setAttribute("open", "");
}

const figures = Object.entries(page.figures)
  .map(([name, about]) => [document.querySelector(`[data-figure="${name}"]`), name, about])
  .filter(([node]) => node)
  .map(parts => new Figure(...parts));
const updateAll = plain => figures.forEach(figure => figure.update(plain));
document.body.append(make("datalist", {id: "clients"}, ...page.clients.map(name => make("option", {value: name}))));
updateAll();
addEventListener("resize", () => updateAll());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => updateAll());
document.querySelectorAll("details").forEach(part => part.addEventListener("toggle", () => updateAll()));
addEventListener("beforeprint", () => { state.printed = state.scale; state.scale = null; updateAll(true); });
addEventListener("afterprint", () => { state.scale = state.printed; updateAll(); });

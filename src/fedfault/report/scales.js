// Where numbers are on a picture, also where rounds are counted in simulated time or bytes: what stands at a round moves.
// A place is an axes on a drawing, with its box in points, its limits and whether y is logarithmic; a panel is its numbers.
// What a round, also one between two, is in the unit of a scale; beyond the ends it goes on as it did on average.
function convert(scale, round) {
  const at = page.rounds, values = scale.values, last = at.length - 1;
  const step = (values[last] - values[0]) / (at[last] - at[0]);
  if (round <= at[0]) return values[0] + (round - at[0]) * step;
  if (round >= at[last]) return values[last] + (round - at[last]) * step;
  const i = at.findIndex(n => n > round) - 1;
  return values[i] + (values[i + 1] - values[i]) * (round - at[i]) / (at[i + 1] - at[i]);
}

// From x of the numbers to the points of a picture.
function placeX(panel, place, x) {
  const [left, , width] = place.box, count = panel.rounds && state.scale ? r => convert(state.scale, r) : r => r;
  const [from, to] = place.x.map(count);
  return left + width * (count(x) - from) / (to - from);
}

function placeY(place, y) {
  const [, top, , height] = place.box, scale = place.log ? Math.log : v => v;
  const [from, to] = place.y.map(scale);
  return top + height * (1 - (scale(y) - from) / (to - from));
}

// How x of a picture in rounds moves to where the scale wants it; outside of the axes nothing moves.
function makeMove(panel, place) {
  const [left, , width] = place.box, [from, to] = place.x;
  return x => x < left || x > left + width ? x : placeX(panel, place, from + (to - from) * (x - left) / width);
}

// Move everything in the axes that stands at a round: lines, areas, bars, markers, names of marks, cells.
function bend(svg, k, panel, place) {
  const axes = svg.querySelector(`[data-part="axes ${k}"]`), move = makeMove(panel, place);
  const original = (node, name) => node.dataset[name] ??= node.getAttribute(name);
  for (const path of axes.querySelectorAll("path")) {
    if (path.closest('[data-part^="at "],[data-part^="x "]')) continue;
    const moved = (_, x, y) => `${move(+x).toFixed(2)} ${y}`;
    path.setAttribute("d", original(path, "d").replace(/(-?[\d.]+) (-?[\d.]+)/g, moved));
  }
  for (const use of axes.querySelectorAll('use[href^="#m"]'))
    if (!use.closest('[data-part^="x "]')) use.setAttribute("x", move(+original(use, "x")));
  for (const group of axes.querySelectorAll('[data-part^="at "]')) {
    const at = +group.dataset.part.slice(3), [left, , width] = place.box, [from, to] = place.x;
    group.setAttribute("transform", `translate(${placeX(panel, place, at) - left - width * (at - from) / (to - from)} 0)`);
  }
  for (const image of axes.querySelectorAll('use[href^="#i"]')) cutImage(image, panel, place);
  drawTicks(svg, k, panel, place);
}

// A picture of cells whose columns are rounds becomes columns of other widths.
function cutImage(used, panel, place) {
  while (used.nextSibling?.classList?.contains("column")) used.nextSibling.remove();
  used.style.display = state.scale ? "none" : "";
  if (!state.scale) return;
  const image = document.querySelector(used.getAttribute("href")), href = image.getAttribute("href");
  const width = +image.getAttribute("width"), rows = +image.getAttribute("height"), first = Math.ceil(place.x[0]);
  const [, y, , height] = place.box, flip = used.getAttribute("transform").split(" ")[3] < 0;
  for (let c = 0; c < width; c++) {
    const x = placeX(panel, place, first + c - .5), end = placeX(panel, place, first + c + .5);
    const box = {x, y, width: Math.max(end - x, 0), height, viewBox: `${c} 0 1 ${rows}`, preserveAspectRatio: "none"};
    const whole = make("svg:image", {href, width, height: rows, preserveAspectRatio: "none", style: "image-rendering: pixelated"});
    if (flip) whole.setAttribute("transform", `translate(0 ${rows}) scale(1 -1)`);
    used.after(make("svg:svg", {class: `column ${used.getAttribute("class") ?? ""}`, ...box}, whole));
  }
}

// The axis of rounds makes room for one in the unit of the scale.
function drawTicks(svg, k, panel, place) {
  const axis = svg.querySelector(`[data-part="x ${k}"]`);
  svg.querySelectorAll(`.ticks-${k}`).forEach(node => node.remove());
  axis.style.display = state.scale ? "none" : "";
  if (!state.scale || !panel.x) return;
  const [left, top, width, height] = place.box, {unit, name} = state.scale;
  const group = make("svg:g", {class: `ticks ticks-${k}`});
  const [from, to] = place.x.map(r => convert(state.scale, r));
  const size = unit === "B" ? [1e9, 1e6, 1e3, 1].find(s => to >= 2 * s) : to >= 36000 ? 3600 : to >= 600 ? 60 : 1;
  const words = unit === "B" ? {1e9: "GB", 1e6: "MB", 1e3: "kB", 1: "bytes"} : {3600: "hours", 60: "minutes", 1: "seconds"};
  const rough = (to - from) / size / (width < 200 ? 3 : 6), ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(s => s * ten).find(s => s >= rough);
  for (let n = Math.max(0, Math.ceil(from / size / step)); n * step * size <= to; n++) {
    const x = left + width * (n * step * size - from) / (to - from);
    group.append(make("svg:text", {x, y: top + height + 13}, format(n * step)));
  }
  group.append(make("svg:text", {x: left + width / 2, y: top + height + 26}, unit === "B" ? `${words[size]} moved` : `${name} (${words[size]})`));
  svg.append(group);
}

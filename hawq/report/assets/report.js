// The charts of one run.
"use strict";
// Colours on a light and on a dark page.
const heat = (shade) => {
  if (shade === undefined || shade === null) return ["var(--soft)", "var(--soft)"];
  return [d3.interpolatePlasma(0.06 + 0.69 * shade), d3.interpolatePlasma(0.28 + 0.6 * shade)];
};
const chartPlace = (name) => document.querySelector(`[data-chart="${name}"]`);

function shadeOf(block, bits) {
  return block.shades[bits ?? 4];
}

// A row of bars, one for each block: width its weights, height its bits, colour the predicted increase.
function drawStrip(root, bits, pick) {
  const blocks = DATA.strip.blocks;
  root.classList.toggle("many", blocks.length > 40);
  const bars = element("div", { class: "bars", role: "group", "aria-label": "Blocks from input to output" });
  const axis = element("div", { class: "axis", "aria-hidden": "true" });
  blocks.forEach((block, place) => {
    const own = bits[place];
    const height = own === null ? 4 : Math.min(own, 8);
    const [light, dark] = heat(shadeOf(block, own));
    const style = `--w:${block.weights};--b:${height};--light:${light};--dark:${dark}`;
    const increase = block.increase === null ? "" : `, predicted increase ${sig(block.increase)}`;
    const label = own === null ? `${block.name}${increase}` : `${block.name}: ${own === 32 ? "float" : `${own} bits`}${pick ? increase : ""}`;
    const inside = [element("b", {}, own === null ? "" : own === 32 ? "f" : String(own)), element("i")];
    const bar = pick
      ? element("button", { class: "bar", type: "button", style, "aria-label": label, tabindex: place ? "-1" : "0" }, ...inside)
      : element("span", { class: "bar", style, title: label }, ...inside);
    if (pick) {
      for (const kind of ["pointerenter", "focus", "click"]) bar.addEventListener(kind, () => pick(place));
      bar.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1, Home: -blocks.length, End: blocks.length }[event.key];
        if (!step) return;
        event.preventDefault();
        bars.children[Math.max(0, Math.min(blocks.length - 1, place + step))].focus();
      });
    }
    bars.append(bar);
  });
  if (!pick) bars.setAttribute("aria-label", `Bits of the blocks from input to output: ${bits.join(", ")}`), bars.setAttribute("role", "img");
  root.replaceChildren(axis, bars);
  if (pick) root.append(names(bars));
  const height = parseFloat(getComputedStyle(root).getPropertyValue("--height")) || 180;
  for (const value of [2, 4, 6, 8]) {
    const mark = element("span", {}, String(value));
    mark.style.bottom = `${(height * value) / 8}px`;
    axis.append(mark);
  }
  return bars;
}

function names(bars) {
  const row = element("div", { class: "names", "aria-hidden": "true" });
  const write = () => {
    row.replaceChildren(
      ...DATA.strip.blocks.map((block, place) => {
        const width = bars.children[place].clientWidth;
        const fits = width > 7 * block.name.length && bars.scrollWidth <= bars.clientWidth + 1;
        return element("span", { style: `--w:${block.weights}` }, fits ? block.name : "");
      }),
    );
  };
  requestAnimationFrame(write);
  window.addEventListener("resize", write);
  return row;
}

function showBlock(place, bars) {
  const block = DATA.strip.blocks[place];
  [...bars.children].forEach((bar, index) => {
    bar.toggleAttribute("aria-current", index === place);
    bar.tabIndex = index === place ? 0 : -1;
  });
  byId("detail").replaceChildren(
    element("div", { class: "name" }, element("dt", { class: "hidden" }, "Block"), element("dd", {}, block.name)),
    ...block.details.map(([key, value]) =>
      element("div", key === "Layers" ? { class: "wide" } : {}, element("dt", {}, key), element("dd", {}, value))),
  );
}

if (DATA.strip) {
  const stops = d3.range(0, 1.01, 0.1).map((shade) => heat(shade));
  byId("ramp").style.setProperty("--light", stops.map(([light]) => light).join(","));
  byId("ramp").style.setProperty("--dark", stops.map(([, dark]) => dark).join(","));
  const bits = DATA.strip.blocks.map((block) => block.bits);
  const bars = drawStrip(byId("strip"), bits, (place) => showBlock(place, bars));
  const first = bits.some((one) => one !== null) ? d3.maxIndex(bits) : d3.maxIndex(DATA.strip.blocks, (block) => block.increase);
  showBlock(first, bars);
}

// Accuracy of every network with its interval.
if (DATA.results.length > 1) {
  const rows = DATA.results.map((row) => ({ ...row, low: row.low ?? row.accuracy, high: row.high ?? row.accuracy, name: `${row.method}, ${row.size}` }));
  const parent = rows[0].accuracy;
  const longest = d3.max(rows, (row) => row.name.length);
  const words = rows.map((row) => `${row.name}: ${row.accuracy.toFixed(2)} %, ${row.low.toFixed(1)} to ${row.high.toFixed(1)}`).join("; ");
  chart(chartPlace("results"), (width) => {
    const narrow = width < 560;
    const low = d3.min(rows, (row) => row.low), high = d3.max(rows, (row) => row.high), pad = Math.max(0.4, (high - low) * 0.08);
    return Plot.plot({
      ...PLOT, width, height: rows.length * (narrow ? 58 : 46) + 50,
      marginLeft: narrow ? 10 : 20 + 7.4 * longest, marginRight: 62, marginTop: narrow ? 22 : 10, marginBottom: 36,
      x: { domain: [Math.max(0, low - pad), Math.min(100, high + pad)], label: "accuracy %", labelAnchor: "center", labelArrow: "none", ticks: narrow ? 4 : 8, grid: true },
      y: { domain: rows.map((row) => row.name), label: null, tickSize: 0, axis: narrow ? null : "left" },
      marks: [
        Plot.ruleX([parent], { stroke: "var(--soft)", strokeDasharray: "3 4" }),
        Plot.link(rows, { x1: "low", x2: "high", y1: "name", y2: "name", stroke: (d, i) => COLORS[i ? (i === rows.length - 1 ? 0 : 1) : 3], strokeWidth: 9, strokeOpacity: 0.28, strokeLinecap: "round" }),
        Plot.dot(rows, { x: "accuracy", y: "name", r: 6, fill: (d, i) => COLORS[i ? (i === rows.length - 1 ? 0 : 1) : 3], stroke: "var(--card)", strokeWidth: 1.5 }),
        Plot.text(rows, { x: "high", y: "name", text: (row) => `${row.accuracy.toFixed(2)} %`, dx: 12, textAnchor: "start", fill: "var(--ink)", fontWeight: 600 }),
        ...(narrow ? [Plot.text(rows, { y: "name", frameAnchor: "left", text: "name", dy: -20, fill: "var(--ink)", stroke: "var(--card)", strokeWidth: 5, textAnchor: "start" })] : []),
      ],
    });
  }, `Accuracy with 95 % intervals. ${words}`);
}

// The frontier: a slider, dots and their plans.
if (DATA.frontier) {
  const { points, here, unit } = DATA.frontier;
  const slider = byId("budget");
  let chosen = DATA.frontier.smaller ?? 0;
  const shown = points.filter((point) => point.objective > 0);
  const log = shown.length > 1 && d3.max(shown, (p) => p.objective) / d3.min(shown, (p) => p.objective) > 4;
  const redraw = chart(chartPlace("frontier"), (width) => {
    const point = points[chosen], heights = log ? decades(shown.map((p) => p.objective), 5) : 5;
    const plot = Plot.plot({
      ...PLOT, width, height: Math.min(380, Math.max(280, width * 0.7)), marginLeft: 62, marginBottom: 44, marginTop: 26, marginRight: 18,
      x: { type: "log", label: DATA.frontier.x },
      y: { type: log ? "log" : "linear", label: DATA.frontier.y, labelArrow: "none", grid: true, tickFormat: sig, ticks: heights },
      marks: [
        across(ticks(points.map((p) => p.bytes), width < 420 ? 3 : 5), sizeText),
        ...(log ? [upward(heights, sig)] : []),
        Plot.line(shown, { x: "bytes", y: "objective", stroke: "var(--accent)", strokeWidth: 1.5 }),
        Plot.dot(shown, { x: "bytes", y: "objective", r: 4, fill: "var(--accent)" }),
        Plot.dot([here].filter((p) => p.objective > 0), { x: "bytes", y: "objective", r: 8, stroke: "var(--warm)", strokeWidth: 2.5, fill: "none" }),
        Plot.text([here].filter((p) => p.objective > 0), { x: "bytes", y: "objective", text: () => "this run", dx: 12, dy: -12, textAnchor: "start", fill: "var(--warm)", fontWeight: 600 }),
        Plot.dot([point].filter((p) => p.objective > 0), { x: "bytes", y: "objective", r: 6.5, fill: "var(--ink)", stroke: "var(--card)", strokeWidth: 2 }),
      ],
    });
    const scale = plot.scale("x");
    const nearest = (event) => {
      const box = plot.getBoundingClientRect();
      const x = ((event.clientX - box.left) * width) / box.width;
      return d3.minIndex(points, (p) => Math.abs(scale.apply(p.bytes) - x));
    };
    plot.style.cursor = "pointer";
    plot.addEventListener("pointermove", (event) => choose(nearest(event)));
    plot.addEventListener("click", (event) => { choose(nearest(event)); copy(points[chosen].command); });
    return plot;
  }, () => `Predicted increase over the size of the plan, ${points.length} plans from ${points[0].size} to ${points.at(-1).size}`);
  function choose(place, force) {
    if (place === chosen && !force) return;
    chosen = place;
    const point = points[place];
    slider.value = place;
    slider.setAttribute("aria-valuetext", `${point.size}, ${point.target}`);
    byId("budget-facts").replaceChildren(...point.facts.map(([key, value]) => element("div", {}, element("dt", {}, key), element("dd", {}, value))));
    byId("budget-command").textContent = point.command;
    byId("budget-copy").dataset.copy = point.command;
    drawStrip(byId("budget-strip"), point.bits, null);
    redraw();
  }
  slider.addEventListener("input", () => choose(Number(slider.value)));
  choose(chosen, true);
}

// Each score against the measured increase of the loss.
if (DATA.validation) {
  const select = byId("score");
  const redraw = chart(chartPlace("validation"), (width) => {
    const points = DATA.validation.scores[Number(select.value)].points.filter((p) => p.x > 0);
    const up = points.filter((p) => p.y > 0), down = points.filter((p) => p.y <= 0);
    const floor = (d3.min(up, (p) => p.y) ?? 1) / 2;
    const low = (p) => Math.max(p.y - p.e, floor / 2), heights = decades([floor, ...up.map((p) => p.y)], 6);
    return Plot.plot({
      ...PLOT, width, height: Math.min(400, Math.max(300, width * 0.8)), marginLeft: 58, marginBottom: 42, marginTop: 26,
      x: { type: "log", label: "predicted increase" },
      y: { type: "log", label: "measured increase of the loss", grid: true, ticks: heights },
      color: { type: "ordinal", scheme: undefined, domain: [...new Set(points.map((p) => p.bits))], range: [0, 0.25, 0.5, 0.65, 0.78, 0.85, 0.9, 0.95].map((part) => d3.interpolateViridis(DARK.matches ? 0.35 + 0.65 * part : 0.9 * part)), legend: true, style: { fontSize: "13px", fontFamily: "inherit", minHeight: 0 }, label: "bits", tickFormat: (bits) => `${bits} bits` },
      marks: [
        across(decades(points.map((p) => p.x), width < 420 ? 4 : 6), power),
        upward(heights, power),
        Plot.ruleX(up, { x: "x", y1: low, y2: (p) => p.y + p.e, stroke: "bits", strokeOpacity: 0.5 }),
        Plot.dot(up, { x: "x", y: "y", fill: "bits", r: 4 }),
        Plot.dot(down, { x: "x", y: floor, stroke: "bits", symbol: "triangle", r: 4, rotate: 180 }),
        Plot.tip(points, Plot.pointer({ x: "x", y: (p) => (p.y > 0 ? p.y : floor), title: (p) => `${p.block} at ${p.bits} bits\npredicted ${sig(p.x)}\nmeasured ${sig(p.y)} ± ${sig(p.e)}`, ...TIP })),
      ],
    });
  }, () => `Predicted against measured increase of the loss, score ${DATA.validation.scores[Number(select.value)].name}`);
  select.addEventListener("change", redraw);
}

function power(value) {
  const exponent = Math.floor(Math.log10(value) + 1e-9), part = Math.round(value / 10 ** exponent);
  if (exponent >= -2 && exponent <= 3) return String(Number(value.toPrecision(2)));
  return `${part === 1 ? "" : `${part}·`}10${String(exponent).replace(/./g, (c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] ?? "⁻")}`;
}

// Accuracy and loss over the steps of fine-tuning.
if (DATA.training) {
  const { lines, borders } = DATA.training;
  const color = (place) => COLORS[place % COLORS.length];
  byId("training-legend").replaceChildren(
    ...lines.map((line, place) => element("span", { class: "key", style: `--c:${color(place)}` }, line.method)),
    ...(DATA.training.float === null ? [] : [element("span", { class: "key dash", style: "--c:var(--soft)" }, `float, ${DATA.training.float.toFixed(2)} %`)]),
  );
  const last = d3.max(lines, (line) => line.loss.at(-1)[0]);
  const common = (width) => ({
    ...PLOT, width, marginLeft: 50, marginRight: 16,
    x: { domain: [0, last], label: "step", labelAnchor: "center", labelArrow: "none", ticks: width < 480 ? 4 : 8 },
  });
  const frame = borders.length < 80 ? [Plot.ruleX(borders, { stroke: "var(--soft)", strokeOpacity: 0.55, strokeDasharray: "1 4" })] : [];
  const measured = lines.flatMap((line) => line.accuracy.map(([step, value]) => ({ step, value, method: line.method })));
  chart(chartPlace("accuracy"), (width) => Plot.plot({
    ...common(width), height: 270, marginTop: 26, marginBottom: 8,
    x: { ...common(width).x, label: null, ticks: [] },
    y: { label: "accuracy %", labelArrow: "none", grid: true, ticks: 5 },
    marks: [
      ...frame,
      ...(DATA.training.float === null ? [] : [Plot.ruleY([DATA.training.float], { stroke: "var(--soft)", strokeDasharray: "5 4" })]),
      ...lines.flatMap((line, place) => [
        Plot.line(line.accuracy, { stroke: color(place), strokeWidth: 2 }),
        Plot.dot(line.accuracy, { fill: color(place), r: 2.5 }),
      ]),
      Plot.tip(measured, Plot.pointer({ x: "step", y: "value", title: (p) => `${p.method}, step ${p.step}\n${p.value.toFixed(2)} %`, ...TIP })),
    ],
  }), `Accuracy over the steps of fine-tuning: ${lines.map((line) => `${line.method} ends at ${line.accuracy.at(-1)?.[1].toFixed(2) ?? "–"} %`).join(", ")}`);
  chart(chartPlace("loss"), (width) => Plot.plot({
    ...common(width), height: 170, marginTop: 22, marginBottom: 40,
    y: { label: "training loss", labelArrow: "none", grid: true, ticks: 4, zero: true },
    marks: [...frame, ...lines.map((line, place) => Plot.line(line.loss, { stroke: color(place), strokeWidth: 1.3, strokeOpacity: 0.9 }))],
  }), "Training loss over the steps of fine-tuning");
}

// The loss along the top eigenvector of the most sensitive blocks.
(DATA.landscape?.blocks ?? []).forEach((block, place) => {
  const points = block.distances.map((distance, index) => ({ distance, loss: block.losses[index] - DATA.landscape.loss }));
  const [low, high] = d3.extent(block.distances);
  const curve = d3.range(0, 61).map((step) => {
    const t = low + ((high - low) * step) / 60;
    return { distance: t, loss: block.slope * t + 0.5 * block.eigenvalue * t * t };
  });
  chart(chartPlace(`landscape-${place}`), (width) => Plot.plot({
    ...PLOT, width, height: 240, marginLeft: 52, marginTop: 24, marginBottom: 40,
    x: { label: "distance", labelAnchor: "center", labelArrow: "none", ticks: 4 },
    y: { label: "rise of the loss", labelArrow: "none", grid: true, ticks: 5, tickFormat: sig },
    marks: [
      Plot.ruleY([0], { stroke: "var(--line)" }),
      Plot.line(curve, { x: "distance", y: "loss", stroke: "var(--warm)", strokeWidth: 1.5, strokeDasharray: "5 3" }),
      Plot.dot(points, { x: "distance", y: "loss", fill: "var(--accent)", r: 3.5 }),
      Plot.tip(points, Plot.pointer({ x: "distance", y: "loss", title: (p) => `moved by ${sig(p.distance)}\nloss ${p.loss >= 0 ? "+" : ""}${sig(p.loss)}`, ...TIP })),
    ],
  }), `Loss of ${block.name} along its top eigenvector`);
});
document.body.dataset.ready = "yes";

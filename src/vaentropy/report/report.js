// What a page does beyond showing itself: tables that sort, curves that zoom and answer, a picker of latents.
// Without this script the page is complete; nothing here asks a network for anything.
(() => {
  "use strict";

  const data = JSON.parse(document.getElementById("data").textContent);
  const COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"];
  const DASHES = ["", "7 3", "7 2 2 2", "12 3 2 3"];
  const HELD_OUT_DASHES = "2 2";
  const SVG = "http://www.w3.org/2000/svg";
  let ids = 0;

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function drawn(name, attributes = {}, text = null) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== null) made.textContent = text;
    return made;
  }

  function format(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size === 0 || (size < 1e6 && size >= 1e-3)) return String(+value.toPrecision(5));
    return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  }

  // --- Tables --------------------------------------------------------------------------------------------------------

  // What a cell is sorted by, as Python writes numbers; NaN where it holds none.
  function keyOf(cell) {
    const key = cell.dataset.key;
    return key === undefined ? NaN : Number(key.replace("inf", "Infinity"));
  }

  // Numbers before texts, missing values last whichever way.
  function compare(a, b, sign) {
    const numbers = [keyOf(a), keyOf(b)];
    const known = numbers.map((number) => !Number.isNaN(number));
    if (known[0] && known[1]) return sign * (numbers[0] - numbers[1]) || 0;
    if (known[0] !== known[1]) return known[0] ? -1 : 1;
    return sign * a.textContent.localeCompare(b.textContent);
  }

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = element("button", { type: "button" }, head.textContent);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => compare(a.cells[column], b.cells[column], sign));
        table.tBodies[0].append(...rows);
      });
    });
  }

  // --- Axes ----------------------------------------------------------------------------------------------------------

  function steps(low, high, count) {
    const raw = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
    const ticks = [];
    for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) ticks.push(+tick.toPrecision(12));
    return ticks;
  }

  function powers(low, high) {
    const ticks = [];
    const every = Math.max(1, Math.ceil((Math.log10(high) - Math.log10(low)) / 4));
    for (let power = Math.ceil(Math.log10(low)); 10 ** power <= high; power += every) ticks.push(10 ** power);
    return ticks.length ? ticks : [low, high];
  }

  function range(values, share = 0.06) {
    const known = values.filter((value) => value !== null && Number.isFinite(value));
    if (!known.length) return null;
    let low = Infinity;
    let high = -Infinity;
    for (const value of known) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
    const room = (high - low) * share || Math.abs(high) * share || 1;
    return [low - room, high + room];
  }

  // --- Curves --------------------------------------------------------------------------------------------------------

  const WIDEST = 720;
  const NARROWEST = 320;
  const LEFT = 64;
  const RIGHT = 12;
  const PANELS = [
    { key: "series", label: "nats per data point", top: 10, height: 210, log: false },
    { key: "gaps", label: "relative gap", top: 246, height: 110, log: true },
  ];
  const HEIGHT = 396;

  // What is drawn: one look for each curve of a run, or one for each run where there are several.
  function looks(runs) {
    const found = [];
    runs.forEach((run, number) => {
      for (const panel of PANELS) {
        Object.entries(run[panel.key]).forEach(([name, [epochs, values]]) => {
          const own = runs.length === 1;
          const heldOut = name.startsWith("held-out");
          const look = own ? (heldOut ? 2 : name === "entropy sum" ? 1 : 0) : number;
          if (!own && name === "entropy sum") return;
          found.push({
            panel, epochs, values, heldOut,
            name: own ? name : `${run.name}, ${name}`,
            colour: COLOURS[look % COLOURS.length],
            dash: heldOut ? HELD_OUT_DASHES : own ? DASHES[look % DASHES.length] : DASHES[number % DASHES.length],
          });
        });
      }
    });
    return found;
  }

  function nearest(epochs, epoch) {
    let best = 0;
    epochs.forEach((each, place) => {
      if (Math.abs(each - epoch) < Math.abs(epochs[best] - epoch)) best = place;
    });
    return best;
  }

  function curves(box) {
    const chosen = box.dataset.run;
    const runs = (chosen === "all" ? data.curves : [data.curves[Number(chosen)]]).filter((run) => Object.keys(run.series).length);
    if (!runs.length) return;
    const lines = looks(runs);
    const epochs = [...new Set(lines.flatMap((line) => line.epochs))].sort((a, b) => a - b);
    if (epochs.length < 2) return;
    // As wide as there is room, so that its text has the size of the page's.
    const WIDTH = Math.min(WIDEST, Math.max(NARROWEST, box.clientWidth));
    const whole = [epochs[0], epochs[epochs.length - 1]];
    // The first epochs, of a model that knows nothing yet, would flatten all others.
    let shown = [whole[0] + 0.1 * (whole[1] - whole[0]), whole[1]];
    let at = null;

    const hint = `chart-hint-${(ids += 1)}`;
    const chart = drawn("svg", {
      class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: "0", role: "application",
      "aria-label": "Training curves that can be explored", "aria-describedby": hint, "aria-roledescription": "chart",
    });
    const readout = element("p", { class: "readout", "aria-live": "polite" });
    const x = (epoch) => LEFT + ((epoch - shown[0]) / (shown[1] - shown[0])) * (WIDTH - LEFT - RIGHT);
    const epochAt = (place) => shown[0] + ((place - LEFT) / (WIDTH - LEFT - RIGHT)) * (shown[1] - shown[0]);

    function panelOf(panel) {
      const own = lines.filter((line) => line.panel === panel);
      const inside = own.flatMap((line) => line.values.filter((_, i) => line.epochs[i] >= shown[0] && line.epochs[i] <= shown[1]));
      const values = panel.log ? inside.map((value) => (value > 0 ? Math.log10(value) : null)) : inside;
      const limits = range(values);
      if (!limits) return;
      const y = (value) => panel.top + panel.height * (1 - ((panel.log ? Math.log10(value) : value) - limits[0]) / (limits[1] - limits[0]));
      const ticks = panel.log ? powers(10 ** limits[0], 10 ** limits[1]) : steps(limits[0], limits[1], 5);
      for (const tick of ticks) {
        chart.append(drawn("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }));
        chart.append(drawn("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, format(tick)));
      }
      chart.append(drawn("line", { class: "axis", x1: LEFT, x2: LEFT, y1: panel.top, y2: panel.top + panel.height }));
      chart.append(drawn("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: panel.top + panel.height, y2: panel.top + panel.height }));
      chart.append(drawn("text", { transform: `translate(12 ${panel.top + panel.height / 2}) rotate(-90)`, "text-anchor": "middle" }, panel.label));
      const clip = `chart-clip-${(ids += 1)}`;
      const clipPath = drawn("clipPath", { id: clip });
      clipPath.append(drawn("rect", { x: LEFT, y: panel.top, width: WIDTH - LEFT - RIGHT, height: panel.height }));
      chart.append(clipPath);
      for (const line of own) {
        let path = "";
        let pen = "M";
        line.values.forEach((value, i) => {
          if (value === null || (panel.log && value <= 0)) {
            pen = "M";
            return;
          }
          path += `${pen}${x(line.epochs[i]).toFixed(1)} ${y(value).toFixed(1)}`;
          pen = "L";
        });
        chart.append(drawn("path", {
          d: path || "M0 0", fill: "none", stroke: line.colour, "stroke-width": 2, "stroke-dasharray": line.dash, "clip-path": `url(#${clip})`,
        }));
        if (at !== null && line.epochs.length) {
          const i = nearest(line.epochs, at);
          const value = line.values[i];
          if (value !== null && line.epochs[i] >= shown[0] && line.epochs[i] <= shown[1] && !(panel.log && value <= 0)) {
            chart.append(drawn("circle", { cx: x(line.epochs[i]), cy: y(value), r: 4, fill: line.colour }));
          }
        }
      }
    }

    function draw() {
      chart.replaceChildren();
      for (const tick of steps(shown[0], shown[1], Math.round(WIDTH / 100))) {
        chart.append(drawn("line", { class: "grid", x1: x(tick), x2: x(tick), y1: PANELS[0].top, y2: HEIGHT - 40 }));
        chart.append(drawn("text", { x: x(tick), y: HEIGHT - 22, "text-anchor": "middle" }, format(tick)));
      }
      chart.append(drawn("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "epoch"));
      PANELS.forEach(panelOf);
      if (at !== null) {
        chart.append(drawn("line", { class: "cursor", x1: x(at), x2: x(at), y1: PANELS[0].top, y2: HEIGHT - 40 }));
        const said = lines.map((line) => {
          const i = nearest(line.epochs, at);
          return `${line.name} ${format(line.values[i])}${line.heldOut && line.epochs[i] !== at ? ` (epoch ${line.epochs[i]})` : ""}`;
        });
        readout.textContent = `Epoch ${at}: ${said.join("; ")}`;
      } else {
        readout.textContent = "";
      }
    }

    function zoom(low, high) {
      const least = Math.max(1, (whole[1] - whole[0]) / 500);
      if (high - low < least) {
        const middle = (low + high) / 2;
        [low, high] = [middle - least / 2, middle + least / 2];
      }
      if (high - low >= whole[1] - whole[0]) [low, high] = whole;
      if (low < whole[0]) [low, high] = [whole[0], high + whole[0] - low];
      if (high > whole[1]) [low, high] = [low - (high - whole[1]), whole[1]];
      shown = [low, high];
      draw();
    }

    function scaled(factor) {
      const middle = at !== null && at >= shown[0] && at <= shown[1] ? at : (shown[0] + shown[1]) / 2;
      zoom(middle - (middle - shown[0]) * factor, middle + (shown[1] - middle) * factor);
    }

    function place(event) {
      const frame = chart.getBoundingClientRect();
      return ((event.clientX - frame.left) / frame.width) * WIDTH;
    }

    let start = null;
    chart.addEventListener("pointermove", (event) => {
      at = epochs[nearest(epochs, Math.min(shown[1], Math.max(shown[0], epochAt(place(event)))))];
      draw();
      if (start !== null) {
        const ends = [start, place(event)].sort((a, b) => a - b);
        chart.append(drawn("rect", { class: "zoomed", x: ends[0], width: ends[1] - ends[0], y: PANELS[0].top, height: HEIGHT - 40 - PANELS[0].top }));
      }
    });
    chart.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse") start = place(event);
    });
    chart.addEventListener("pointerup", (event) => {
      if (start === null) return;
      const ends = [epochAt(start), epochAt(place(event))].sort((a, b) => a - b);
      const far = Math.abs(place(event) - start) > 8;
      start = null;
      if (far) zoom(ends[0], ends[1]);
    });
    chart.addEventListener("pointerleave", () => {
      start = null;
      at = null;
      draw();
    });
    chart.addEventListener("dblclick", () => zoom(...whole));
    chart.addEventListener("keydown", (event) => {
      const inside = epochs.filter((epoch) => epoch >= shown[0] && epoch <= shown[1]);
      const now = at === null ? inside.length - 1 : nearest(inside, at);
      const keys = {
        ArrowLeft: () => { at = inside[Math.max(0, now - 1)]; draw(); },
        ArrowRight: () => { at = inside[Math.min(inside.length - 1, now + 1)]; draw(); },
        Home: () => { at = inside[0]; draw(); },
        End: () => { at = inside[inside.length - 1]; draw(); },
        "+": () => scaled(0.5),
        "-": () => scaled(2),
        Escape: () => { at = null; zoom(...whole); },
      };
      if (!keys[event.key] || !inside.length) return;
      event.preventDefault();
      keys[event.key]();
    });

    const buttons = [["Zoom in", () => scaled(0.5)], ["Zoom out", () => scaled(2)], ["All epochs", () => zoom(...whole)]].map(([text, act]) => {
      const button = element("button", { type: "button" }, text);
      button.addEventListener("click", act);
      return button;
    });
    const legend = element("ul", { class: "legend" });
    const named = new Set();
    for (const line of lines.filter((each) => each.panel === PANELS[0])) {
      if (named.has(line.name)) continue;
      named.add(line.name);
      const key = drawn("svg", { viewBox: "0 0 36 10", "aria-hidden": "true" });
      key.append(drawn("line", { x1: 0, x2: 36, y1: 5, y2: 5, stroke: line.colour, "stroke-width": 3, "stroke-dasharray": line.dash }));
      legend.append(element("li", {}, key, line.name));
    }
    const about = element("p", { id: hint }, "Point at an epoch, or use the arrow keys; drag over epochs to zoom, or use + and −; Escape shows all.");
    const scroll = element("div", { class: "scroll" }, chart);
    // What it stands in for is still printed.
    box.classList.add("live");
    box.prepend(legend, element("div", { class: "controls" }, ...buttons), scroll, readout, about);
    draw();
  }

  // --- Latents -------------------------------------------------------------------------------------------------------

  const SIDE = 380;
  const MARGIN = 48;
  const MOST_LABELS = 10;

  function select(label, numbers, value, changed) {
    const id = `select-${(ids += 1)}`;
    const made = element("select", { id });
    numbers.forEach((number, place) => made.append(element("option", { value: place }, `latent ${number}`)));
    made.value = value;
    made.addEventListener("change", changed);
    return [made, element("span", {}, element("label", { for: id }, `${label} `), made)];
  }

  // A dot, or a triangle where the colours begin anew, as in the figures.
  function mark(number, x, y, size) {
    const look = { fill: COLOURS[number % COLOURS.length], opacity: 0.8 };
    if (number < COLOURS.length) return drawn("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: size, ...look });
    const [left, right, top, bottom] = [x - 1.2 * size, x + 1.2 * size, y - 1.2 * size, y + size].map((value) => value.toFixed(1));
    return drawn("path", { d: `M${left} ${bottom}L${right} ${bottom}L${x.toFixed(1)} ${top}Z`, ...look });
  }

  function picker(box) {
    const cloud = data.latents[Number(box.dataset.run)];
    // Two latents are in the figure as they are.
    if (!cloud || cloud.latents.length < 3) return;
    const names = cloud.labels ? [...new Set(cloud.labels)].sort((a, b) => a.localeCompare(b, undefined, { numeric: true })) : [];
    const coloured = names.length > 1 && names.length <= MOST_LABELS;
    const chart = drawn("svg", { class: "chart", viewBox: `0 0 ${SIDE} ${SIDE}`, role: "img", style: "max-width: 34rem" });
    const said = element("p", { class: "readout", "aria-live": "polite" });
    const [across, acrossBox] = select("Across:", cloud.latents, 0, draw);
    const [up, upBox] = select("Up:", cloud.latents, 1, draw);

    function draw() {
      const [first, second] = [Number(across.value), Number(up.value)];
      const [xs, ys] = [cloud.means[first], cloud.means[second]];
      const [xRange, yRange] = [range(xs), range(ys)];
      chart.replaceChildren();
      if (!xRange || !yRange) return;
      const x = (value) => MARGIN + ((value - xRange[0]) / (xRange[1] - xRange[0])) * (SIDE - MARGIN - 10);
      const y = (value) => SIDE - MARGIN - ((value - yRange[0]) / (yRange[1] - yRange[0])) * (SIDE - MARGIN - 10);
      for (const tick of steps(...xRange, 5)) {
        chart.append(drawn("line", { class: "grid", x1: x(tick), x2: x(tick), y1: 10, y2: SIDE - MARGIN }));
        chart.append(drawn("text", { x: x(tick), y: SIDE - MARGIN + 16, "text-anchor": "middle" }, format(tick)));
      }
      for (const tick of steps(...yRange, 5)) {
        chart.append(drawn("line", { class: "grid", x1: MARGIN, x2: SIDE - 10, y1: y(tick), y2: y(tick) }));
        chart.append(drawn("text", { x: MARGIN - 6, y: y(tick) + 4, "text-anchor": "end" }, format(tick)));
      }
      const chosen = [cloud.latents[first], cloud.latents[second]];
      chart.append(drawn("text", { x: SIDE / 2, y: SIDE - 8, "text-anchor": "middle" }, `mean of latent ${chosen[0]}`));
      chart.append(drawn("text", { transform: `translate(12 ${SIDE / 2}) rotate(-90)`, "text-anchor": "middle" }, `mean of latent ${chosen[1]}`));
      const pairs = [];
      xs.forEach((value, i) => {
        if (value === null || ys[i] === null) return;
        pairs.push([value, ys[i]]);
        const place = coloured ? names.indexOf(cloud.labels[i]) : 0;
        chart.append(mark(place, x(value), y(ys[i]), 2.5));
      });
      const rows = [...document.querySelectorAll(`#r${box.dataset.run}-latents tbody tr`)];
      rows.forEach((row) => row.classList.toggle("chosen", chosen.includes(Number(row.cells[0].textContent))));
      const text = `Posterior means of ${pairs.length} data points in latents ${chosen[0]} and ${chosen[1]}, correlation ${format(correlation(pairs))}`;
      chart.setAttribute("aria-label", text);
      said.textContent = `${text}.`;
    }

    box.append(element("div", { class: "controls" }, acrossBox, upBox), element("div", { class: "scroll" }, chart), said);
    if (coloured) {
      const legend = element("ul", { class: "legend" });
      names.forEach((name, place) => {
        const key = drawn("svg", { viewBox: "0 0 36 10", "aria-hidden": "true" });
        key.append(mark(place, 18, 5, 4));
        legend.append(element("li", {}, key, name));
      });
      box.append(legend);
    }
    draw();
  }

  function correlation(pairs) {
    const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
    const [mx, my] = [mean(pairs.map((pair) => pair[0])), mean(pairs.map((pair) => pair[1]))];
    let [xy, xx, yy] = [0, 0, 0];
    for (const [a, b] of pairs) {
      xy += (a - mx) * (b - my);
      xx += (a - mx) ** 2;
      yy += (b - my) ** 2;
    }
    return xx > 0 && yy > 0 ? xy / Math.sqrt(xx * yy) : null;
  }

  // All of a page is printed.
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => each.setAttribute("open", "")));
  document.querySelectorAll("table.sortable").forEach(sortable);
  document.querySelectorAll(".curves").forEach(curves);
  document.querySelectorAll(".picker").forEach(picker);
})();

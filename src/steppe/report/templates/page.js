"use strict";
(() => {
  const data = JSON.parse(document.getElementById("steppe-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const PATTERNS = ["", "/", "x", "."];
  const CONFIG = { displayModeBar: false, responsive: false, doubleClick: "reset" };
  let printing = false;

  // Plotly reads a little HTML in its texts; names are data and must stay text.
  const text = (value) => String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const percent = (fraction) => (100 * fraction).toFixed(1);
  const spread = (value) => percent(value.mean) + (value.error === null ? "" : ` ± ${percent(value.error)}`);
  const from = (runs) => (runs.length > 8 ? `<br>${runs.length} runs` : `<br>${runs.length === 1 ? "run" : "runs"} ${runs.map(text).join(", ")}`);
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const ink = (method) => (dark.matches && !printing ? method.ink.dark : method.ink.light);

  // What the boxes at the top leave over. A key without boxes has one name only, and everything is shown.
  const boxes = (key) => [...document.querySelectorAll(`.filters input[name="${key}"]`)];
  const kept = (key, names) => {
    const all = boxes(key), on = new Set(all.filter((box) => box.checked).map((box) => box.value));
    return all.length ? names.filter((name) => on.has(name)) : names;
  };

  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  function estimate(values) {
    const middle = mean(values), squares = values.reduce((sum, value) => sum + (value - middle) ** 2, 0);
    return { mean: middle, error: values.length > 1 ? Math.sqrt(squares / (values.length - 1) / values.length) : null, n: values.length };
  }

  // The mean over some held-out domains, seed by seed: as Python takes it over all of them.
  function averageOver(method, domains, name) {
    const cells = domains.map((domain) => method.cells[domain]);
    if (!cells.length || !cells.every(Boolean)) { return null; }
    const tables = cells.map((cell) => new Map(cell.held_out.runs.map((id) => [data.runs[id].repetition, data.runs[id][name]])));
    const seeds = [...tables[0].keys()];
    const alike = tables.every((table, at) => table.size === seeds.length && cells[at].held_out.runs.length === seeds.length && seeds.every((seed) => table.has(seed)));
    if (alike) { return estimate(seeds.map((seed) => mean(tables.map((table) => table.get(seed))))); }
    const means = cells.map((cell) => mean(cell.held_out.runs.map((id) => data.runs[id][name])));
    return { mean: mean(means), error: null, n: Math.min(...cells.map((cell) => cell.held_out.runs.length)) };
  }

  // The comparison as the boxes leave it; averages are over the domains that are left.
  function narrowed(comparison) {
    const held_out = kept("domain", comparison.held_out), names = new Set(kept("method", comparison.methods.map((method) => method.name)));
    const partial = held_out.length < comparison.held_out.length;
    const methods = comparison.methods.filter((method) => names.has(method.name)).map((method) => (partial
      ? { ...method, average: averageOver(method, held_out, "held_out_accuracy"), average_in_domain: averageOver(method, held_out, "in_domain_accuracy") }
      : method));
    return { ...comparison, held_out, methods, partial };
  }

  // On paper a chart has the width of an upright page, whatever the window's.
  const fit = (element) => { element.style.width = printing ? "17cm" : ""; };

  function layout(element, extra) {
    const colours = { paper: style("--paper"), ink: style("--ink"), grid: style("--grid"), muted: style("--muted") };
    return {
      width: element.clientWidth, height: element.clientHeight,
      paper_bgcolor: colours.paper, plot_bgcolor: colours.paper, showlegend: false,
      font: { family: style("--sans"), size: 12, color: colours.ink },
      hoverlabel: { bgcolor: colours.paper, bordercolor: colours.muted, font: { color: colours.ink, family: style("--sans") }, align: "left" },
      margin: { l: 44, r: 8, t: 12, b: 28 }, hovermode: "closest", dragmode: false, ...extra(colours),
    };
  }

  // The bars stand at places of our own, so that a diamond is exactly over the bar it belongs to.
  function bars(comparison) {
    const groups = comparison.held_out.map((domain) => ({
      title: domain,
      of: (method) => method.cells[domain] || null,
    }));
    if (comparison.held_out.length > 1 && comparison.methods.some((method) => method.average)) {
      groups.push({
        title: "average",
        of: (method) => method.average && { held_out: { ...method.average, runs: method.runs }, in_domain: method.average_in_domain },
      });
    }
    const slot = 0.82 / comparison.methods.length;
    const traces = [];
    comparison.methods.forEach((method, number) => {
      const places = [], cells = [];
      groups.forEach((group, position) => {
        const cell = group.of(method);
        if (cell) {
          places.push(position - 0.41 + (number + 0.5) * slot);
          cells.push({ title: group.title, ...cell });
        }
      });
      const colour = ink(method);
      const hover = (cell, kind) => `<b>${text(method.name)}</b> · ${text(cell.title)}<br>${kind} ${spread(cell[kind === "in-domain" ? "in_domain" : "held_out"])} %${from(cell.held_out.runs)}`;
      traces.push({
        type: "bar", name: method.name, x: places, y: cells.map((cell) => 100 * cell.held_out.mean), width: slot * 0.86,
        marker: { color: colour, pattern: { shape: PATTERNS[method.ink.turn % 4], bgcolor: colour, fgcolor: style("--paper"), size: 5 } },
        error_y: { type: "data", array: cells.map((cell) => 100 * (cell.held_out.error || 0)), visible: cells.some((cell) => cell.held_out.error !== null), color: style("--ink"), thickness: 1.4, width: 4 },
        text: cells.map((cell) => percent(cell.held_out.mean)), textposition: "inside", insidetextanchor: "start", textangle: 0,
        textfont: { color: dark.matches && !printing ? "#15181b" : "#ffffff", size: 11 }, constraintext: "none",
        hovertext: cells.map((cell) => hover(cell, "held-out")), hoverinfo: "text",
      });
      // On paper of its own, so that a diamond is seen on the bar of its own colour too.
      traces.push({
        type: "scatter", mode: "markers", name: `${method.name}, in-domain`, x: places, y: cells.map((cell) => 100 * cell.in_domain.mean),
        marker: { symbol: "diamond", size: 10, color: style("--paper"), line: { color: colour, width: 1.6 } },
        hovertext: cells.map((cell) => hover(cell, "in-domain")), hoverinfo: "text", cliponaxis: false,
      });
    });
    return { traces, groups };
  }

  function drawBars(section, comparison) {
    const element = section.querySelector(".chart-bars");
    if (!comparison.methods.length || !comparison.held_out.length) { return; }
    const { traces, groups } = bars(comparison);
    // A bar needs some 13 pixels to be told apart; a chart of many scrolls in its own box.
    const least = 60 + groups.length * (comparison.methods.length * 13 + 16);
    fit(element);
    element.style.minWidth = printing ? "" : `${least}px`;
    const room = (element.clientWidth - 52) / (groups.length * (comparison.methods.length + 0.6));
    traces.filter((trace) => trace.type === "bar").forEach((trace) => {
      if (trace.marker.pattern.shape) { trace.textposition = "none"; } // figures on stripes cannot be read
      trace.textangle = room < 36 ? -90 : 0;
      if (room < 15) { trace.textposition = "none"; }
    });
    const highest = Math.max(...traces.flatMap((trace) => trace.y.map((value, at) => value + (trace.error_y ? trace.error_y.array[at] : 0))));
    const top = Math.min(100, 20 * Math.ceil((highest + 2) / 20));
    Plotly.react(element, traces, layout(element, (colours) => ({
      xaxis: { tickvals: groups.map((_, place) => place), ticktext: groups.map((group) => text(group.title)), range: [-0.5, groups.length - 0.5], fixedrange: true, showgrid: false, zeroline: false, linecolor: colours.ink, showline: true },
      yaxis: { range: [0, top], ticksuffix: " %", fixedrange: true, gridcolor: colours.grid, zeroline: false, dtick: 20 },
    })), CONFIG);
  }

  function panelsOf(comparison, choice) {
    const curves = comparison.curves.filter((curve) => curve.held_out === choice.held_out);
    const methods = comparison.methods.filter((method) => curves.some((curve) => curve.method === method.name));
    const domains = comparison.domains.filter((domain) => curves.some((curve) => curve.domain === domain));
    const line = (method, domain, dash) => ({ method, domain, dash, curve: curves.find((curve) => curve.method === method.name && curve.domain === domain) });
    if (choice.panels === "method") {
      return {
        panels: methods.map((method) => ({ title: method.name, lines: domains.map((domain, place) => line(method, domain, DASHES[place % 6])) })),
        legend: domains.map((domain, place) => ({ title: domain, dash: DASHES[place % 6], light: style("--ink"), dark: style("--ink") })),
      };
    }
    return {
      panels: domains.map((domain) => ({ title: domain, lines: methods.map((method) => line(method, domain, DASHES[method.ink.turn % 6])) })),
      legend: methods.map((method) => ({ title: method.name, dash: DASHES[method.ink.turn % 6], light: method.ink.light, dark: method.ink.dark })),
    };
  }

  function drawLegend(element, entries) {
    const css = { solid: "solid", dash: "dashed", longdash: "dashed", dot: "dotted", dashdot: "dashed", longdashdot: "dashed" };
    element.replaceChildren(...entries.map((entry) => {
      const item = document.createElement("li"), swatch = document.createElement("span");
      swatch.className = "swatch line";
      swatch.style.setProperty("--light", entry.light);
      swatch.style.setProperty("--dark", entry.dark);
      swatch.style.setProperty("--dash", css[entry.dash]);
      item.append(swatch, entry.title);
      return item;
    }));
  }

  function drawCurves(section, comparison) {
    const element = section.querySelector(".chart-curves");
    if (!element) { return; }
    fit(element);
    const choice = Object.fromEntries(new FormData(section.querySelector(".choose-curves")));
    const { panels, legend } = panelsOf(comparison, choice);
    const traces = [], grid = panelGrid(element, panels.map((panel) => panel.title));
    panels.forEach((panel, place) => {
      const id = grid.id(place);
      grid.axes[`xaxis${id}`].last = grid.last(place);
      panel.lines.filter((line) => line.curve).forEach(({ method, domain, dash, curve }) => {
        traces.push({
          type: "scatter", mode: "lines", name: `${method.name} · ${domain}`, x: curve.steps, y: curve[choice.form], xaxis: `x${id}`, yaxis: `y${id}`,
          line: { color: ink(method), dash, width: 1.8 }, hoverinfo: "text",
          hovertext: curve.steps.map((step, at) => `<b>${text(method.name)}</b> · ${text(domain)}<br>step ${step}, loss ${curve.loss[at].toFixed(3)}${from(curve.runs)}`),
        });
      });
    });
    drawPanels(element, traces, grid, "step", { rangemode: "tozero", nticks: 5 });
    drawLegend(section.querySelector(".curve-legend"), legend);
  }

  // Panels of one size, side by side as far as there is room; they share their axes unless told otherwise.
  function panelGrid(element, names, own = false) {
    const columns = Math.max(1, Math.min(names.length, Math.floor(element.clientWidth / 250))), rows = Math.max(1, Math.ceil(names.length / columns));
    element.style.height = `${rows * 235 + 30}px`;
    if (!printing) { element.style.width = rows === 1 && element.clientWidth > 420 * names.length ? `${420 * names.length}px` : ""; }
    const gap = { x: 34 / element.clientWidth, y: (own ? 74 : 52) / (rows * 235) };
    const size = { x: (1 - gap.x * (columns - 1)) / columns, y: (1 - gap.y * (rows - 1)) / rows };
    const id = (place) => (place ? String(place + 1) : ""), axes = {}, titles = [];
    names.forEach((name, place) => {
      const left = (place % columns) * (size.x + gap.x), top = 1 - Math.floor(place / columns) * (size.y + gap.y);
      axes[`xaxis${id(place)}`] = { anchor: `y${id(place)}`, domain: [left, left + size.x], ...(place && !own ? { matches: "x" } : {}), last: true };
      axes[`yaxis${id(place)}`] = { anchor: `x${id(place)}`, domain: [top - size.y, top], ...(place ? { matches: "y" } : {}), first: place % columns === 0 };
      titles.push({ text: `<b>${text(name)}</b>`, x: left, y: top, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 13 } });
    });
    return { axes, titles, id, last: (place) => place + columns >= names.length };
  }

  function drawPanels(element, traces, grid, title, vertical) {
    Plotly.react(element, traces, layout(element, (colours) => {
      const axes = {};
      for (const [name, axis] of Object.entries(grid.axes)) {
        const { last, first, ...rest } = axis, common = { ...rest, fixedrange: true, gridcolor: colours.grid, zeroline: false, linecolor: colours.muted, showline: true, showticklabels: last ?? first };
        axes[name] = name.startsWith("y") ? { ...common, ...vertical } : { nticks: 5, ...common };
        if (last && title) { axes[name].title = { text: title, standoff: 4, font: { size: 11, color: colours.muted } }; }
      }
      return { ...axes, annotations: grid.titles, margin: { l: 40, r: 16, t: 24, b: 40 } };
    }), CONFIG);
  }

  function drawSensitivity(section, comparison) {
    const element = section.querySelector(".chart-sensitivity");
    if (!element) { return; }
    fit(element);
    const chooser = section.querySelector(".choose-sensitivity select");
    const domain = chooser ? chooser.value : comparison.held_out[0];
    const value = (point) => (domain === "" ? point.average : point.held_out[domain] || null);
    const name = (line) => (line.fixed ? `${line.algorithm} (${line.fixed})` : line.algorithm);
    const panels = comparison.sensitivities, traces = [], legend = new Map();
    const crowded = panels.some((panel) => panel.single.length > 40);
    const grid = panelGrid(element, panels.map((panel) => panel.parameter), true);
    panels.forEach((panel, place) => {
      const id = grid.id(place), values = new Set(), axis = grid.axes[`xaxis${id}`];
      [...panel.lines.map((line) => [line, true]), ...panel.single.map((line) => [line, false])].forEach(([line, joined]) => {
        const points = line.points.filter(value), found = points.map(value), colour = ink(line);
        if (!points.length) { return; }
        points.forEach((point) => values.add(point.value));
        traces.push({
          type: "scatter", mode: joined ? "lines+markers" : "markers", name: name(line), x: points.map((point) => point.value), y: found.map((each) => 100 * each.mean),
          xaxis: `x${id}`, yaxis: `y${id}`, line: { color: colour, width: 1.8 }, cliponaxis: false,
          marker: joined ? { color: colour, size: 7 } : { color: style("--paper"), size: crowded ? 5 : 8, opacity: crowded ? 0.75 : 1, line: { color: colour, width: crowded ? 1.2 : 1.6 } },
          error_y: { type: "data", array: found.map((each) => 100 * (each.error || 0)), visible: (joined || !crowded) && found.some((each) => each.error !== null), color: colour, thickness: 1.2, width: 3 },
          hoverinfo: "text", hovertext: points.map((point, at) => `<b>${text(name(line))}</b><br>${text(panel.parameter)} ${point.value}: ${spread(found[at])} %`),
        });
        legend.set(line.algorithm, { title: line.algorithm, dash: "solid", light: line.ink.light, dark: line.ink.dark });
      });
      const ticks = [...values].sort((one, other) => one - other);
      if (panel.logarithmic) { Object.assign(axis, { type: "log", dtick: 1, exponentformat: "power" }); }
      if (ticks.length <= 6) { Object.assign(axis, { tickmode: "array", tickvals: ticks, ticktext: ticks.map(String) }); }
    });
    drawPanels(element, traces, grid, "", { nticks: 6, ticksuffix: " %" });
    drawLegend(section.querySelector(".sensitivity-legend"), [...legend.values()]);
  }

  function drawSharpness(section, comparison) {
    const element = section.querySelector(".chart-sharpness");
    if (!element) { return; }
    fit(element);
    const methods = comparison.methods.filter((method) => comparison.sharpness.some((curve) => curve.method === method.name)), traces = [];
    const domains = comparison.held_out.filter((held) => comparison.sharpness.some((curve) => curve.held_out === held));
    const grid = panelGrid(element, domains);
    domains.forEach((held, place) => methods.forEach((method) => {
      const curve = comparison.sharpness.find((each) => each.held_out === held && each.method === method.name);
      if (!curve) { return; }
      traces.push({
        type: "scatter", mode: "lines+markers", name: `${method.name} · ${held}`, x: curve.steps, y: curve.values, xaxis: `x${grid.id(place)}`, yaxis: `y${grid.id(place)}`,
        line: { color: ink(method), dash: DASHES[method.ink.turn % 6], width: 1.8 }, marker: { size: 5 }, hoverinfo: "text",
        hovertext: curve.steps.map((step, at) => `<b>${text(method.name)}</b> · ${text(held)}<br>step ${step}, variance ${curve.values[at].toPrecision(3)}${from(curve.runs)}`),
      });
    }));
    drawPanels(element, traces, grid, "step", { type: "log", nticks: 5, exponentformat: "power" });
    drawLegend(section.querySelector(".sharpness-legend"), methods.map((method) => ({ title: method.name, dash: DASHES[method.ink.turn % 6], light: method.ink.light, dark: method.ink.dark })));
  }

  const sections = [...document.querySelectorAll("[data-comparison]")];
  const comparisonOf = (section) => data.comparisons[Number(section.dataset.comparison)];
  const draw = () => sections.filter((section) => !section.hidden).forEach((section) => {
    const comparison = narrowed(comparisonOf(section));
    drawBars(section, comparison);
    drawSensitivity(section, comparisonOf(section));
    drawCurves(section, comparison);
    drawSharpness(section, comparison);
  });

  sections.forEach((section) => {
    const listen = (where, redrawn) => section.querySelector(where)?.addEventListener("change", () => redrawn(section, narrowed(comparisonOf(section))));
    listen(".choose-curves", drawCurves);
    section.querySelector(".choose-sensitivity")?.addEventListener("change", () => drawSensitivity(section, comparisonOf(section)));
  });

  // The numbers over domains, where only some are left; what was over all of them comes back with them.
  function narrowTable(section, comparison) {
    const domains = new Set(comparison.held_out), methods = new Map(comparison.methods.map((method) => [method.name, method]));
    section.querySelectorAll(".results [data-domain]").forEach((cell) => { cell.hidden = !domains.has(cell.dataset.domain); });
    section.querySelectorAll(".results tr[data-method]").forEach((row) => {
      const method = methods.get(row.dataset.method);
      row.hidden = !method;
      for (const [where, name] of [["average", "average"], ["in-domain", "average_in_domain"]]) {
        const cell = row.querySelector(`td.${where}`);
        if (!cell || !method) { continue; }
        cell.querySelector(".part")?.remove();
        cell.classList.toggle("partial", comparison.partial);
        if (comparison.partial) {
          const part = document.createElement("span");
          part.className = "part";
          part.textContent = method[name] ? spread(method[name]) : "–";
          cell.append(part);
        }
      }
    });
    section.classList.toggle("narrowed", comparison.partial);
  }

  function narrow() {
    const told = [];
    for (const [key, noun] of [["dataset", "data sets"], ["method", "methods"], ["domain", "domains"]]) {
      const all = boxes(key), on = all.filter((box) => box.checked).length;
      if (on < all.length) { told.push(`${on} of ${all.length} ${noun}`); }
    }
    const chosen = document.querySelector(".filters .chosen");
    if (chosen) { chosen.textContent = told.length ? told.join(", ") : "everything"; }
    const datasets = new Set(kept("dataset", data.comparisons.map((comparison) => comparison.name)));
    sections.forEach((section) => {
      const comparison = narrowed(comparisonOf(section));
      section.hidden = !datasets.has(comparison.name) || !comparison.held_out.length || !comparison.methods.length;
      if (!section.hidden) { narrowTable(section, comparison); }
    });
    const names = [...new Set(data.comparisons.flatMap((comparison) => comparison.methods.map((method) => method.name)))], on = new Set(kept("method", names));
    document.querySelectorAll("tr[data-first]").forEach((row) => { row.hidden = !(on.has(row.dataset.first) && on.has(row.dataset.second)); });
    document.querySelectorAll("#overall tr[data-row]").forEach((row) => { row.hidden = !on.has(row.dataset.row); });
  }

  const filters = document.querySelector(".filters");
  filters?.addEventListener("change", () => { narrow(); draw(); });
  filters?.addEventListener("click", (event) => {
    const { all, none } = event.target.dataset;
    if (!all && !none) { return; }
    boxes(all || none).forEach((box) => { box.checked = Boolean(all); });
    narrow();
    draw();
  });

  // The table of very many runs is made as far as it is looked at.
  const table = document.querySelector(".run-table tbody"), more = document.querySelector(".more-runs"), PORTION = 200;
  const methodOf = new Map(data.comparisons.flatMap((comparison) => comparison.methods.flatMap((method) => method.runs.map((id) => [id, method.name]))));
  let listed = [], made = 0;
  function makeRow(id) {
    const run = data.runs[id], row = document.createElement("tr"), cell = (kind, content, code) => {
      const made = row.appendChild(document.createElement(kind));
      (code ? made.appendChild(document.createElement("code")) : made).textContent = content;
      return made;
    };
    row.id = `run-${id}`;
    row.dataset.id = id;
    cell("th", id, true).scope = "row";
    [methodOf.get(id), run.held_out, run.seed, run.selected, percent(run.validation_accuracy), percent(run.held_out_accuracy), percent(run.held_out_accuracy_all),
      percent(run.in_domain_accuracy), run.seconds_per_step.toPrecision(3)].forEach((content) => cell("td", content));
    cell("td", run.path, true);
    return row;
  }
  function listMore(portion = PORTION) {
    table.append(...listed.slice(made, made + portion).map(makeRow));
    made = Math.min(made + portion, listed.length);
    document.querySelector(".runs-shown").textContent = `${made} of ${listed.length} shown`;
    more.hidden = made >= listed.length;
  }
  function list(ids) {
    table.replaceChildren();
    [listed, made] = [ids, 0];
    listMore();
  }
  if (more) {
    document.querySelector("details.runs").addEventListener("toggle", () => { if (!listed.length) { list(Object.keys(data.runs)); } }, { once: true });
    more.addEventListener("click", () => listMore());
  }

  // A number leads to its runs: their rows are marked in the table of runs.
  document.addEventListener("click", (event) => {
    const number = event.target.closest("a.n[data-run]");
    if (!number) { return; }
    const ids = new Set(number.dataset.run.split(" "));
    if (more) { list([...ids, ...Object.keys(data.runs).filter((id) => !ids.has(id))]); }
    document.querySelector("details.runs").open = true;
    const rows = [...document.querySelectorAll(".run-table tbody tr")];
    rows.forEach((row) => row.classList.toggle("picked", ids.has(row.dataset.id)));
    const first = rows.find((row) => ids.has(row.dataset.id));
    if (first) { event.preventDefault(); first.scrollIntoView({ block: "center" }); }
  });

  let width = 0, waiting = 0;
  const redraw = () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(draw); };
  addEventListener("resize", () => { if (document.body.clientWidth !== width) { width = document.body.clientWidth; redraw(); } });
  dark.addEventListener("change", redraw);
  addEventListener("beforeprint", () => { printing = true; document.querySelector("details.runs").open = true; draw(); });
  addEventListener("afterprint", () => { printing = false; draw(); });
  width = document.body.clientWidth;
  narrow();
  draw();
  document.documentElement.dataset.ready = "yes";
})();

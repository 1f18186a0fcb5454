// Live learning curves: takes a run's points as server-sent events and redraws one Plotly figure in place, so that the
// reader's zoom and hidden traces stay. No Streamlit rerun happens until the run ends. Events: see live.py.

const METRICS = ["train_loss", "train_accuracy", "test_loss", "test_accuracy"];
const CATCH_UP = 60; // steps that stacks of one run may be apart before the slower one counts as not started
const LOAD_AFTER = 1500; // ms
const charts = new WeakMap();
let plotlyLoading = null;

function loadPlotly(url) {
  if (window.Plotly) return Promise.resolve(window.Plotly);
  plotlyLoading ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = url;
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => { plotlyLoading = null; reject(new Error("plotly.js did not load")); };
    document.head.appendChild(script);
  });
  return plotlyLoading;
}

class Chart {
  constructor(root) {
    this.root = root;
    this.plot = root.querySelector(".rc-plot");
    this.text = root.querySelector(".rc-text");
    this.bar = root.querySelector(".rc-bar > div");
    this.track = root.querySelector(".rc-bar");
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(root);
    // Streamlit's theme reaches components as CSS variables only; a switch of theme is a changed text colour.
    this.themeTimer = setInterval(() => { if (this.drawnWith !== this.theme().join()) this.draw(); }, 700);
  }

  set(data, ended) {
    this.ended = ended;
    const other = !this.data || this.data.stream !== data.stream || this.data.started !== data.started;
    this.data = data;
    if (other) {
      this.close();
      this.stacks = new Map(); // stack -> Map(step -> point)
      this.history = null;
      this.status = null;
      this.cursor = 0;
      Object.assign(this.root.dataset, { points: "0", stream: data.stream ?? "" });
      if (data.stream) this.open();
      this.bring = data.live;
    }
    this.draw();
  }

  open() {
    const source = new EventSource(this.data.stream + (this.cursor ? `?cursor=${this.cursor}` : ""));
    this.source = source;
    const mine = (handler) => (message) => { if (this.source === source) handler(message); };
    source.addEventListener("points", mine((message) => {
      if (message.lastEventId) this.cursor = Number(message.lastEventId);
      for (const [stack, point] of JSON.parse(message.data)) {
        if (!this.stacks.has(stack)) this.stacks.set(stack, new Map());
        const steps = this.stacks.get(stack);
        if (steps.has(point.step)) for (const step of [...steps.keys()]) if (step > point.step) steps.delete(step);
        steps.set(point.step, point);
      }
      this.arrived = performance.now();
      this.draw();
    }));
    source.addEventListener("history", mine((message) => { this.history = JSON.parse(message.data); this.draw(); }));
    source.addEventListener("status", mine((message) => { this.status = JSON.parse(message.data); this.lost = false; this.say(); }));
    source.addEventListener("end", mine(() => {
      this.close();
      this.draw();
      if (this.data.live) this.ended(this.status ? this.status.status : "done");
    }));
    source.onopen = () => { this.lost = false; this.say(); };
    source.onerror = mine(() => {
      this.lost = true;
      this.say();
      if (source.readyState === EventSource.CLOSED) { // refused, not dropped: the browser does not try again by itself
        this.close();
        this.retry = setTimeout(() => this.open(), 1500);
      }
    });
  }

  close() {
    clearTimeout(this.retry);
    if (this.source) this.source.close();
    this.source = null;
  }

  destroy() {
    this.close();
    clearInterval(this.themeTimer);
    clearTimeout(this.later);
    this.observer.disconnect();
    if (window.Plotly) window.Plotly.purge(this.plot);
  }

  // Rows of {epoch, metric: [value of each seed that has one]}, in step order.
  rows() {
    if (this.history) {
      return this.history.epoch.map((epoch, i) => Object.fromEntries([["epoch", epoch], ...METRICS.map((m) => [m, this.history[m][i]])]));
    }
    const last = new Map([...this.stacks].map(([stack, steps]) => [stack, Math.max(...steps.keys())]));
    const all = [...new Set([...this.stacks.values()].flatMap((steps) => [...steps.keys()]))].sort((a, b) => a - b);
    const rows = [];
    for (const step of all) {
      const expected = [...last].filter(([, end]) => end >= step || step - end <= CATCH_UP).map(([stack]) => stack);
      const points = expected.map((stack) => this.stacks.get(stack).get(step));
      if (points.some((point) => !point)) continue;
      const row = { epoch: points[0].epoch };
      for (const metric of METRICS) row[metric] = points.every((p) => p[metric]) ? points.flatMap((p) => p[metric]) : null;
      rows.push(row);
    }
    return rows;
  }

  // Mean over seeds and half the 95 % interval (Student's t), where there are at least two seeds.
  summary(rows, metric) {
    const out = { epoch: [], mean: [], half: [], n: 0 };
    for (const row of rows) {
      const values = row[metric];
      if (!values) continue;
      const n = values.length, mean = values.reduce((a, b) => a + b, 0) / n;
      const spread = n > 1 ? Math.sqrt(values.reduce((a, b) => a + (b - mean) ** 2, 0) / (n - 1)) : 0;
      out.epoch.push(row.epoch);
      out.mean.push(mean);
      out.half.push(n > 1 ? (this.data.t[n] * spread) / Math.sqrt(n) : 0);
      out.n = n;
    }
    return out;
  }

  traces(name, style, summary, metric, faint) {
    const accuracy = metric.endsWith("accuracy"), test = metric.startsWith("test");
    const axis = accuracy ? "2" : "", scale = accuracy ? 100 : 1, unit = accuracy ? " %" : " nats";
    const common = { xaxis: "x" + axis, yaxis: "y" + axis, legendgroup: name + test, showlegend: false };
    const mean = summary.mean.map((v) => v * scale), half = summary.half.map((v) => v * scale);
    const color = style.color, out = [];
    if (summary.n > 1) {
      out.push({ ...common, uid: name + metric + "band", x: [...summary.epoch, ...[...summary.epoch].reverse()],
        y: [...mean.map((m, i) => m + half[i]), ...mean.map((m, i) => m - half[i]).reverse()],
        fill: "toself", fillcolor: color + (test ? "2e" : "1c"), line: { width: 0 }, hoverinfo: "skip", mode: "lines" });
    }
    out.push({ ...common, uid: name + metric, x: summary.epoch, y: mean, customdata: half, showlegend: !accuracy && summary.mean.length > 0,
      name: `${name}, ${test ? "test" : "training"}`, mode: test && summary.mean.length <= 60 ? "lines+markers" : "lines",
      line: { color, width: test ? 2.5 : 1.4, dash: test ? "solid" : "dot" }, opacity: faint ? 0.55 : 1,
      marker: { size: 7, symbol: style.symbol },
      hovertemplate: `${name}, ${test ? "test" : "training"}<br>epoch %{x:.2f}: %{y:.3f}` +
        (summary.n > 1 ? ` ± %{customdata:.3f}${unit} (n = ${summary.n})` : `${unit} (n = 1, no interval)`) + "<extra></extra>" });
    return out;
  }

  theme() {
    const style = getComputedStyle(this.root);
    return [style.color, style.fontFamily];
  }

  draw() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => { this.frame = null; this.drawNow(); });
  }

  load() {
    this.ready ??= loadPlotly(this.data.plotly);
    this.ready.catch(() => { this.ready = null; });
  }

  drawNow() {
    if (!this.data || !this.root.isConnected) return;
    this.root.hidden = !this.data.stream;
    if (!this.data.stream) { // nothing to draw yet: get the library when the page's own figures are through with the processor
      this.later ??= setTimeout(() => (window.requestIdleCallback ?? ((call) => call()))(() => this.load(), { timeout: 2000 }), LOAD_AFTER);
      return;
    }
    this.load();
    const rows = this.rows(), width = this.root.clientWidth || 600, narrow = width < 620;
    const traces = [], mine = {};
    let lossTop = 0, accuracyLow = 100;
    const add = (name, style, summary, metric, faint) => {
      traces.push(...this.traces(name, style, summary, metric, faint));
      const settled = summary.mean.filter((_, i) => summary.epoch[i] >= 0.03 * summary.epoch.at(-1)); // the first steps would flatten the rest
      if (metric.endsWith("loss")) lossTop = Math.max(lossTop, ...settled); else accuracyLow = Math.min(accuracyLow, ...settled.map((v) => 100 * v));
    };
    for (const pin of this.data.pinned) for (const metric of ["test_loss", "test_accuracy"]) add(pin.name, pin, pin[metric], metric, true);
    for (const metric of METRICS) { mine[metric] = this.summary(rows, metric); add(this.data.name, this.data, mine[metric], metric, false); }
    const [color, family] = this.theme(), grid = "rgba(128,128,128,.22)";
    const axis = (title, extra) => ({ title: { text: title, standoff: 6 }, gridcolor: grid, zerolinecolor: grid, automargin: true, ...extra });
    const epochs = [0, Math.max(this.data.epochs, ...this.data.pinned.map((p) => p.epochs))];
    const layout = {
      height: narrow ? 560 : 360, width, margin: { l: 8, r: 8, t: 8, b: 8 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color, family, size: 13 }, legend: { orientation: "h", y: -0.16, yanchor: "top", x: 0, yref: "paper" }, uirevision: this.data.stream || "none",
      grid: narrow ? { rows: 2, columns: 1, pattern: "independent", ygap: 0.28 } : { rows: 1, columns: 2, pattern: "independent", xgap: 0.14 },
      xaxis: axis("Epoch", { range: epochs }), xaxis2: axis("Epoch", { range: epochs }),
      yaxis: axis("Loss, nats", { range: [0, (lossTop || 2.4) * 1.06] }),
      yaxis2: axis("Accuracy, %", { range: [Math.max(0, accuracyLow - 0.06 * (100 - accuracyLow)), 100 + 0.03 * (100 - accuracyLow)] }),
      hovermode: "closest",
    };
    this.drawnWith = this.theme().join();
    const config = { displaylogo: false, responsive: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
    this.ready.then((Plotly) => {
      Plotly.react(this.plot, traces, layout, config);
      if (this.bring) this.root.scrollIntoView({ block: "nearest", behavior: "smooth" }); // Train may stand a screen below, on a phone
      this.bring = false;
      this.root.dataset.points = String(rows.length);
      this.root.dataset.drawn = String(performance.timeOrigin + performance.now());
    }).catch(() => { this.text.textContent = "The chart library did not load. Reload the page."; });
    this.describe(mine);
    this.say();
  }

  describe(mine) {
    const at = (s, scale, digits) => (s.mean.length ? `${(s.mean.at(-1) * scale).toFixed(digits)}` : "not measured yet");
    const n = mine.train_loss.n || 0;
    this.plot.setAttribute("aria-label",
      `Learning curves of ${this.data.name}, n = ${n} seeds, band: 95 % interval of the mean. Last values: training loss ` +
      `${at(mine.train_loss, 1, 4)} nats, test loss ${at(mine.test_loss, 1, 4)} nats, training accuracy ${at(mine.train_accuracy, 100, 2)} %, ` +
      `test accuracy ${at(mine.test_accuracy, 100, 2)} %.`);
  }

  say() {
    const s = this.status, open = s && ["queued", "running", "interrupted"].includes(s.status);
    this.track.hidden = !open;
    this.root.dataset.status = s ? s.status : "";
    if (!this.data.live) { this.text.textContent = ""; return; }
    if (this.lost) { this.text.textContent = "Connection lost. Reconnecting; training goes on."; return; }
    if (!s) { this.text.textContent = "Connecting…"; return; }
    const percent = s.total ? Math.floor((100 * s.done) / s.total) : 0;
    this.bar.style.width = percent + "%";
    this.track.setAttribute("aria-valuenow", percent);
    const left = s.left === null || s.left === undefined ? "" : s.left < 90 ? `, about ${Math.ceil(s.left)} s left` : `, about ${Math.ceil(s.left / 60)} min left`;
    this.text.textContent = {
      queued: !s.worker ? "Waiting for a worker to start." : s.ahead ? `Waiting: ${s.ahead} run${s.ahead > 1 ? "s" : ""} before this one.` : "Waiting for the training process to take it.",
      running: `Training: ${percent} %${left}`,
      interrupted: "Interrupted: its training process ended. It goes on from the last checkpoint by itself.",
    }[s.status] ?? "";
  }
}

export default function (component) {
  const { data, parentElement, setTriggerValue } = component;
  const root = parentElement.querySelector(".rc-live");
  let chart = charts.get(root);
  if (!chart) charts.set(root, (chart = new Chart(root)));
  chart.set(data, (status) => setTriggerValue("ended", status));
  return () => { chart.destroy(); charts.delete(root); };
}

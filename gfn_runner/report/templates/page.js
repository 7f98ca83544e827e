// How long ago the page was written: a run that was killed cannot say that it is.
function age() {
  for (const e of document.querySelectorAll('[data-written]')) {
    const s = Math.max(0, Date.now() / 1000 - e.dataset.written);
    const [n, unit] = s < 90 ? [s, 's'] : s < 5400 ? [s / 60, 'min'] : [s / 3600, 'h'];
    e.textContent = ' (' + Math.round(n) + ' ' + unit + ' ago)';
  }
}
age(); setInterval(age, 1000);
// What a reader has opened stays open when the page is loaded again.
for (const e of document.querySelectorAll('details')) {
  // Numbers in a summary change while a run goes on.
  const key = location.pathname + ' ' + e.querySelector('summary').textContent.replace(/\d+/g, '');
  try {
    if (sessionStorage.getItem(key)) e.open = true;
    e.addEventListener('toggle', () => {
      if (e.open) sessionStorage.setItem(key, '1'); else sessionStorage.removeItem(key);
    });
  } catch (refused) { break; } // a browser may keep nothing for pages that are files
}
// Pointing at a row of a sweep's table, or at a curve, highlights all curves of that run.
function highlight(run, on) {
  document.body.classList.toggle('pointed', on);
  for (const e of document.querySelectorAll('tr[data-run="' + run + '"], .trace' + run)) {
    e.classList.toggle('on', on);
  }
}
for (const e of document.querySelectorAll('tr[data-run]')) {
  e.addEventListener('mouseenter', () => highlight(e.dataset.run, true));
  e.addEventListener('mouseleave', () => highlight(e.dataset.run, false));
}
// Plotly lies compressed in the page: as it is it would be five megabytes.
async function inflate(packed) {
  const bytes = Uint8Array.from(atob(packed), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  const script = document.createElement('script');
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}
const axis = { gridcolor: '#ececec', linecolor: '#bbb', showline: true, mirror: true, zeroline: false,
               automargin: true, exponentformat: 'power', nticks: 6 };
function draw(place) {
  const { data, layout } = JSON.parse(place.querySelector('script').textContent);
  place.textContent = '';
  const common = {
    margin: { l: 8, r: 8, t: 6, b: 8 }, font: { size: 12, color: '#444', family: 'system-ui, sans-serif' },
    legend: { orientation: 'h', y: -0.22, yanchor: 'top', font: { size: 11 } }, hoverlabel: { namelength: -1 },
    // A finger scrolls the page.
    dragmode: matchMedia('(pointer: coarse)').matches ? false : 'zoom',
    ...layout,
    xaxis: { ...axis, title: { text: 'optimizer step', standoff: 6 }, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
  };
  Plotly.newPlot(place, data, common, { responsive: true, displaylogo: false, displayModeBar: false });
  place.on('plotly_hover', e => e.points[0].data.uid && highlight(e.points[0].data.uid, true));
  place.on('plotly_unhover', e => e.points[0].data.uid && highlight(e.points[0].data.uid, false));
}
const packed = document.getElementById('plotly'), places = document.querySelectorAll('.plot');
async function drawAll() {
  if (!packed) return;
  if ('DecompressionStream' in window) {
    await inflate(packed.textContent);
    places.forEach(draw);
  } else {
    for (const e of places) {
      e.className = 'plot message';
      e.textContent = 'No chart: this browser is older than 2023 and cannot decompress Plotly.';
    }
  }
}
// While the run trains the page is loaded again; a slow telephone draws it first.
drawAll().finally(() => {
  document.body.classList.add('drawn');
  const seconds = Number(document.body.dataset.refresh);
  if (seconds) setTimeout(() => location.reload(), 1000 * seconds);
});

// How long ago the page was written: a run that was killed cannot say that it is.
function age() {
  for (const e of document.querySelectorAll('[data-written]')) {
    const s = Math.max(0, Date.now() / 1000 - e.dataset.written);
    const [n, unit] = s < 90 ? [s, 's'] : s < 5400 ? [s / 60, 'min'] : [s / 3600, 'h'];
    e.textContent = ' (' + Math.round(n) + ' ' + unit + ' ago)';
    if (Date.now() / 1000 > e.dataset.due) {
      for (const b of document.querySelectorAll('.badge.busy')) {
        b.className = 'badge odd'; b.textContent = 'silent';
        b.title = 'the page would have been written again by now';
      }
    }
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
// Pointing at a row of a sweep's table, or at a curve, lets all of that run's curves stand out.
for (const e of document.querySelectorAll('[data-owner]')) {
  const all = on => () => {
    document.body.classList.toggle('pointed', on);
    for (const o of document.querySelectorAll('[data-owner="' + e.dataset.owner + '"]')) {
      o.classList.toggle('on', on);
    }
  };
  e.addEventListener('mouseenter', all(true)); e.addEventListener('mouseleave', all(false));
}

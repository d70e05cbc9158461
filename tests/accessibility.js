// What a person who sees little, hears the page read, or uses no mouse would stumble over; empty lists are good.
// faint: text under WCAG's AA contrast (4.5 : 1, large text 3 : 1). unreachable: controls that Tab passes by.
// silent: pictures without a text. nameless: buttons and links that say nothing. mouseonly: rows that only a click chooses.
// unannounced: results that no region reads out which was there before them.
const seen = e => e.getClientRects().length && getComputedStyle(e).visibility !== 'hidden';
const rgb = text => { const n = text.match(/[\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
const over = (top, under) => [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * under[i]).concat(1);
const ground = e => { const layers = []; for (let x = e; x; x = x.parentElement) {
    const s = getComputedStyle(x); if (s.backgroundImage !== 'none') return null; layers.push(rgb(s.backgroundColor)); }
  return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]); };
const light = c => { const l = c.slice(0, 3).map(v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * l[0] + 0.7152 * l[1] + 0.0722 * l[2]; };
const faint = [];
for (const e of document.querySelectorAll('body *')) {
  if (!seen(e) || e.closest('[disabled], [aria-hidden=true], svg')) continue;
  if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim().length > 1)) continue;
  const s = getComputedStyle(e), back = ground(e);
  if (!back) continue;
  const [a, b] = [light(over(rgb(s.color), back)), light(back)].sort((x, y) => y - x);
  const large = parseFloat(s.fontSize) >= 24 || (parseFloat(s.fontSize) >= 18.66 && s.fontWeight >= 700);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < (large ? 3 : 4.5)) faint.push(`${ratio.toFixed(2)} ${s.color} on ${back} ${e.textContent.trim().slice(0, 40)}`);
}
const unreachable = [...document.querySelectorAll('button, input, textarea, select, a[href], [role=tab], [role=button]')]
  .filter(e => seen(e) && !e.disabled && e.tabIndex < 0 && !e.closest('[aria-hidden=true], .tab-container.visually-hidden')).map(e => e.outerHTML.slice(0, 160));
const silent = [...document.querySelectorAll('img')].filter(e => seen(e) && !e.alt && !e.closest('td')).map(e => e.outerHTML.slice(0, 160));
const nameless = [...document.querySelectorAll('button, a[href]')].filter(e => seen(e) && !e.textContent.trim()
  && !e.getAttribute('aria-label') && !e.title && ![...e.querySelectorAll('img')].some(i => i.alt)).map(e => e.outerHTML.slice(0, 160));
const mouseonly = [...document.querySelectorAll('.examples tbody tr')].filter(e => seen(e) && !e.querySelector('button')).map(e => e.outerHTML.slice(0, 160));
const announced = [...document.querySelectorAll('[role=status]')].filter(e => !e.closest('.card')).map(e => e.textContent).join(' ');
const unannounced = [...document.querySelectorAll('#finding .says, #verdict .says')].filter(e => seen(e) && !announced.includes(e.textContent.trim()))
  .map(e => e.outerHTML.slice(0, 160));
return {faint, unreachable, silent, nameless, mouseonly, unannounced};

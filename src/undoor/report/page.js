'use strict';
(async () => {
const $ = (selector, of = document) => of.querySelector(selector);
const all = (selector, of = document) => [...of.querySelectorAll(selector)];
const make = (name, text = '', attributes = {}) => {
  const element = document.createElement(name);
  element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};
const say = text => { $('#status').textContent = text; };

// Tables: a click on a column's name sorts by it, numbers by their value, texts by the reader's alphabet.
for (const table of all('table.sortable')) {
  const heads = all('thead th', table), body = $('tbody', table);
  const value = (row, column) => {
    const cell = row.cells[column], number = parseFloat(cell.dataset.value ?? cell.textContent);
    return heads[column].classList.contains('n') ? (Number.isNaN(number) ? -Infinity : number) : cell.textContent;
  };
  heads.forEach((head, column) => {
    if (head.classList.contains('pick')) return;
    const button = make('button', head.textContent, {type: 'button'});
    head.replaceChildren(button);
    button.addEventListener('click', () => {
      const numeric = head.classList.contains('n'), now = head.getAttribute('aria-sort');
      const down = now ? now === 'ascending' : numeric;
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      const compare = numeric ? (a, b) => a - b : (a, b) => a.localeCompare(b);
      const rows = [...body.rows].map(row => [value(row, column), row]);
      rows.sort(([a], [b]) => (down ? -1 : 1) * (a === b ? 0 : compare(a, b)));
      body.append(...rows.map(([, row]) => row));
      say(`sorted by ${button.textContent}, ${down ? 'descending' : 'ascending'}`);
    });
  });
}
// Forms that sift the rows of a table.
for (const form of all('form.sieve')) {
  const rows = all('tbody tr', document.getElementById(form.dataset.of));
  const text = $('input[type=search]', form), only = $('input[type=checkbox]', form);
  const sift = () => {
    const wanted = text.value.toLowerCase();
    for (const row of rows)
      row.hidden = !row.textContent.toLowerCase().includes(wanted) || (only?.checked && !row.classList.contains('flagged'));
    $('output', form).textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} rows`;
  };
  text.addEventListener('input', sift);
  only?.addEventListener('change', sift);
  form.addEventListener('submit', event => event.preventDefault());
  form.hidden = false;
  sift();
}

// What the page knows of the images: deflated JSON, one list a column.
const bytes = Uint8Array.from(atob($('#data').textContent), character => character.charCodeAt(0));
const data = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'))).json();
if (!data) {  // a result without images
  document.documentElement.dataset.ready = 'yes';
  return;
}
const {classes, samples, thumbs} = data, n = samples.id.length;
const chosen = new Set(), members = new Map();
const key = (label, cluster) => `${label} ${cluster}`;
for (let i = 0; i < n; i++) {
  const of = key(samples.label[i], samples.cluster[i]);
  if (!members.has(of)) members.set(of, []);
  members.get(of).push(i);
}
const told = i => {
  const lines = [samples.id[i], `labelled ${classes[samples.label[i]]}`];
  const after = samples.filtered ? ` → ${classes[samples.filtered[i]]}` : '';
  lines.push(`decided ${classes[samples.predicted[i]]}${after}`);
  lines.push(`cluster ${samples.cluster[i]}, score ${samples.score[i]}${samples.flagged[i] ? ', flagged' : ''}`);
  return lines;
};
const sheet = $('#smalls');
await sheet.decode().catch(() => {});
const picture = (canvas, i) => {
  const place = samples.thumb[i], {columns, width, height} = thumbs;
  canvas.hidden = place < 0;
  if (place < 0) return;
  [canvas.width, canvas.height] = [width, height];
  const x = place % columns * width, y = Math.floor(place / columns) * height;
  canvas.getContext('2d').drawImage(sheet, x, y, width, height, 0, 0, width, height);
};

// The selection: one set of images, shown by the map, the cards, the table and the list.
const PICKED = 48, watchers = [];
const select = (indices, on) => {
  for (const i of indices) on ? chosen.add(i) : chosen.delete(i);
  watchers.forEach(watch => watch());
  say(`${chosen.size} selected`);
};
const toggle = indices => select(indices, !indices.every(i => chosen.has(i)));
watchers.push(() => {
  for (const count of all('[data-count]')) count.textContent = chosen.size;
  for (const button of all('[data-save=selection], [data-clear]')) button.disabled = !chosen.size;
  for (const button of all('[data-sample]')) button.setAttribute('aria-pressed', chosen.has(+button.dataset.sample));
  const shown = [...chosen].slice(0, PICKED).map(i => {
    const item = make('li'), canvas = make('canvas');
    picture(canvas, i);
    item.append(canvas, make('span', samples.id[i]));
    return item;
  });
  if (chosen.size > PICKED) shown.push(make('li', `and ${chosen.size - PICKED} more`));
  $('#picked').replaceChildren(...shown);
});
const save = (name, indices) => {
  const text = indices.map(i => samples.id[i] + '\n').join('');
  const link = make('a', '', {download: name, href: URL.createObjectURL(new Blob([text], {type: 'text/plain'}))});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
const ordered = indices => [...indices].sort((a, b) => a - b);
for (const button of all('[data-save]'))
  button.addEventListener('click', () => button.dataset.save === 'drop'
    ? save('drop.txt', samples.id.map((_, i) => i).filter(i => samples.flagged[i]))
    : save('selection.txt', ordered(chosen)));
for (const button of all('[data-clear]')) button.addEventListener('click', () => select([...chosen], false));
for (const button of all('[data-sample]')) button.addEventListener('click', () => toggle([+button.dataset.sample]));
for (const cell of all('td.pick')) {
  const mine = members.get(key(cell.dataset.class, cell.dataset.cluster)) ?? [];
  const button = make('button', 'select', {type: 'button', 'aria-pressed': false});
  button.addEventListener('click', () => toggle(mine));
  cell.append(button);
  watchers.push(() => {
    const count = mine.reduce((sum, i) => sum + chosen.has(i), 0);
    button.textContent = count ? `${count} selected` : 'select';
    button.setAttribute('aria-label', `${button.textContent}: ${cell.dataset.name}`);
    button.setAttribute('aria-pressed', count === mine.length);
    cell.dataset.value = count;
  });
}
for (const element of all('.controls')) element.hidden = false;

// The map of one class.
if (samples.x) {
  $('#plot').hidden = false;
  const canvas = $('#canvas'), tip = $('#tip'), list = $('#map-class'), draw = canvas.getContext('2d');
  const SHAPES = ['circle', 'square', 'triangle', 'cross'], MARGIN = 16, NEAR = 14;
  let shown = [], places = new Map(), at = -1, corner = null, box = null;
  let swallow = false;  // the click that ends a rectangle
  const shape = (to, kind, x, y, r) => {
    to.beginPath();
    if (kind === 'circle') to.arc(x, y, r, 0, 7);
    else if (kind === 'square') to.rect(x - r * .9, y - r * .9, r * 1.8, r * 1.8);
    else if (kind === 'cross') for (const s of [-1, 1]) { to.moveTo(x - r, y - s * r); to.lineTo(x + r, y + s * r); }
    else {
      const corners = kind === 'triangle' ? [[0, -1.2], [1.1, .8], [-1.1, .8]] : [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]];
      for (const [dx, dy] of corners) to.lineTo(x + r * dx, y + r * dy);
      to.closePath();
    }
    if (kind === 'cross') { to.lineWidth = 1.8; to.stroke(); } else to.fill();
  };
  const mark = (to, i, x, y, r) => {
    const style = getComputedStyle(document.documentElement), cluster = samples.cluster[i];
    const colour = style.getPropertyValue(samples.flagged[i] ? '--flagged' : `--c${cluster % 5}`);
    to.fillStyle = to.strokeStyle = colour;
    shape(to, samples.flagged[i] ? 'diamond' : SHAPES[cluster % 4], x, y, samples.flagged[i] ? r * 1.2 : r);
  };
  const paint = () => {
    const {width, height} = canvas.getBoundingClientRect(), dense = window.devicePixelRatio || 1;
    if (!width) return;
    [canvas.width, canvas.height] = [Math.round(width * dense), Math.round(height * dense)];
    draw.setTransform(dense, 0, 0, dense, 0, 0);
    places = new Map(shown.map(i => [i, [
      MARGIN + samples.x[i] / data.grid * (width - 2 * MARGIN),
      MARGIN + (1 - samples.y[i] / data.grid) * (height - 2 * MARGIN)]]));
    const r = shown.length > 2000 ? 2.6 : 3.6, ink = getComputedStyle(document.documentElement).getPropertyValue('--ink');
    draw.globalAlpha = .75;
    for (const [i, [x, y]] of places) mark(draw, i, x, y, r);
    draw.globalAlpha = 1;
    draw.strokeStyle = ink;
    for (const [i, [x, y]] of places) {
      if (!chosen.has(i) && i !== at) continue;
      draw.lineWidth = i === at ? 2.5 : 1.2;
      draw.beginPath();
      draw.arc(x, y, i === at ? r + 5 : r + 2, 0, 7);
      draw.stroke();
    }
    if (box) { draw.lineWidth = 1; draw.setLineDash([4, 3]); draw.strokeRect(...box); draw.setLineDash([]); }
  };
  const look = (i, spoken) => {
    at = i;
    tip.hidden = i < 0;
    if (i >= 0) {
      const [x, y] = places.get(i), lines = told(i), {width, height} = canvas.getBoundingClientRect();
      if (samples.thumb[i] < 0) lines.push('no picture in this file');
      picture($('#tip-image'), i);
      $('#tip-text').textContent = lines.join('\n');
      tip.style.left = `${Math.max(0, Math.min(x + 14, width - tip.offsetWidth))}px`;
      tip.style.top = `${y + 14 + tip.offsetHeight < height ? y + 14 : Math.max(0, y - 14 - tip.offsetHeight)}px`;
      if (spoken) say(lines.join(', '));
    }
    paint();
  };
  const nearest = (x, y, fits = () => true) => {
    let best = -1, least = Infinity;
    for (const [i, [px, py]] of places) {
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < least && fits(px - x, py - y)) [best, least] = [i, distance];
    }
    return [best, Math.sqrt(least)];
  };
  const open = label => {
    list.value = label;
    shown = samples.label.map((_, i) => i).filter(i => samples.label[i] === label);
    shown.sort((a, b) => samples.flagged[a] - samples.flagged[b]);
    const present = [...new Set(shown.map(i => samples.cluster[i]))].sort((a, b) => a - b);
    $('#legend').replaceChildren(...present.map(cluster => {
      const mine = members.get(key(label, cluster)), item = make('li');
      const button = make('button', '', {type: 'button', title: 'select these'}), sign = make('canvas', '', {width: 32, height: 32});
      mark(sign.getContext('2d'), mine[0], 16, 16, 9);
      const flagged = samples.flagged[mine[0]] ? ', flagged' : '';
      button.append(sign, `cluster ${cluster} (${mine.length}${flagged})`);
      button.addEventListener('click', () => toggle(mine));
      item.append(button);
      return item;
    }));
    canvas.setAttribute('aria-label', `Map of ${shown.length} images of class ${classes[label]}`);
    look(-1);
  };
  const point = event => {
    const {left, top} = canvas.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  };
  const drag = (x, y) => {
    if (corner && Math.hypot(x - corner[0], y - corner[1]) > 4)
      box = [Math.min(x, corner[0]), Math.min(y, corner[1]), Math.abs(x - corner[0]), Math.abs(y - corner[1])];
    return box;
  };
  canvas.addEventListener('pointerdown', event => { if (event.button === 0 && event.pointerType !== 'touch') corner = point(event); });
  canvas.addEventListener('pointermove', event => {
    const [x, y] = point(event);
    if (drag(x, y)) return look(-1);
    const [i, distance] = nearest(x, y), next = distance < NEAR ? i : -1;
    if (next !== at) look(next);
  });
  window.addEventListener('pointerup', event => {
    if (drag(...point(event))) {
      const [x, y, width, height] = box;
      box = null;
      select(shown.filter(i => {
        const [px, py] = places.get(i);
        return px >= x && px <= x + width && py >= y && py <= y + height;
      }), true);
      swallow = event.target === canvas;
    }
    corner = null;
  });
  canvas.addEventListener('click', event => {
    const [i, distance] = nearest(...point(event));
    if (!swallow && distance < NEAR) toggle([i]);
    swallow = false;
  });
  canvas.addEventListener('pointerleave', () => { if (at >= 0) look(-1); });
  const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  canvas.addEventListener('keydown', event => {
    const way = ARROWS[event.key];
    if (way) {
      const [x, y] = places.get(at) ?? [MARGIN, canvas.getBoundingClientRect().height / 2];
      const ahead = (dx, dy) => dx * way[0] + dy * way[1] > .5 && Math.abs(dx * way[1] + dy * way[0]) <= dx * way[0] + dy * way[1];
      const [i] = at < 0 ? nearest(x, y) : nearest(x, y, ahead);
      if (i >= 0) look(i, true);
    } else if ((event.key === ' ' || event.key === 'Enter') && at >= 0) toggle([at]);
    else if (event.key === 'Escape') { select([...chosen], false); look(-1); }
    else return;
    event.preventDefault();
  });
  canvas.addEventListener('blur', () => { if (at >= 0) look(-1); });
  list.addEventListener('change', () => open(+list.value));
  const present = new Set(samples.label);
  classes.forEach((name, label) => { if (present.has(label)) list.append(make('option', name, {value: label})); });
  open(data.first ?? samples.label[Math.max(0, samples.flagged.indexOf(1))]);
  watchers.push(paint);
  window.addEventListener('resize', paint);
  // On paper the page is bright; so that the map is, too, it is painted with those colours before.
  for (const [event, printing] of [['beforeprint', true], ['afterprint', false]])
    window.addEventListener(event, () => { document.documentElement.toggleAttribute('data-print', printing); paint(); });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => open(+list.value));
  // A mark on the axis of impurity, and a cluster picked in the table, open the map of their class.
  for (const dot of all('.dot'))
    dot.addEventListener('click', () => {
      open(+dot.dataset.class);
      toggle(members.get(key(dot.dataset.class, dot.dataset.cluster)) ?? []);
    });
}
document.documentElement.dataset.ready = 'yes';
})();

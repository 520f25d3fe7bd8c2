'use strict';
(async () => {
const find = (selector, root = document) => root.querySelector(selector);
const findAll = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (name, text = '', attributes = {}) => {
  const element = document.createElement(name);
  element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
};
const announce = text => { find('#status').textContent = text; };  // for screen readers

// Tables: a click on the name of a column sorts by it, numbers by value, texts by the reader's alphabet.
for (const table of findAll('table.sortable')) {
  const heads = findAll('thead th', table), body = find('tbody', table);
  const value = (row, column) => {
    const cell = row.cells[column], number = parseFloat(cell.dataset.value ?? cell.textContent);
    return heads[column].classList.contains('n') ? (Number.isNaN(number) ? -Infinity : number) : cell.textContent;
  };
  heads.forEach((head, column) => {
    if (head.classList.contains('pick')) return;
    const button = make('button', head.textContent, {type: 'button'});
    head.replaceChildren(button);
    button.addEventListener('click', () => {
      const numeric = head.classList.contains('n'), current = head.getAttribute('aria-sort');
      const descending = current ? current === 'ascending' : numeric, order = descending ? 'descending' : 'ascending';
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', order);
      const compare = numeric ? (a, b) => a - b : (a, b) => a.localeCompare(b);
      const rows = [...body.rows].map(row => [value(row, column), row]);
      rows.sort(([a], [b]) => (descending ? -1 : 1) * (a === b ? 0 : compare(a, b)));
      body.append(...rows.map(([, row]) => row));
      announce(`sorted by ${button.textContent}, ${order}`);
    });
  });
}
// Forms that search the rows of a table.
for (const form of findAll('form.search')) {
  const rows = findAll('tbody tr', document.getElementById(form.dataset.table));
  const text = find('input[type=search]', form), only = find('input[type=checkbox]', form);
  const search = () => {
    const wanted = text.value.toLowerCase();
    for (const row of rows)
      row.hidden = !row.textContent.toLowerCase().includes(wanted) || (only?.checked && !row.classList.contains('flagged'));
    find('output', form).textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} rows`;
  };
  text.addEventListener('input', search);
  only?.addEventListener('change', search);
  form.addEventListener('submit', event => event.preventDefault());
  form.hidden = false;
  search();
}

// The data of the images: deflated JSON, one list a column.
const bytes = Uint8Array.from(atob(find('#data').textContent), character => character.charCodeAt(0));
const data = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'))).json();
if (!data) {  // the page of a result without images that can be selected
  document.documentElement.dataset.ready = 'yes';
  return;
}
const {classes, samples, thumbnails} = data, n = samples.id.length;
const selected = new Set(), members = new Map();
const clusterKey = (label, cluster) => `${label} ${cluster}`;
for (let i = 0; i < n; i++) {
  const key = clusterKey(samples.label[i], samples.cluster[i]);
  if (!members.has(key)) members.set(key, []);
  members.get(key).push(i);
}
const membersOf = element => members.get(clusterKey(element.dataset.class, element.dataset.cluster)) ?? [];
const describe = i => {
  const after = samples.filtered ? ` → ${classes[samples.filtered[i]]}` : '';
  return [
    samples.id[i],
    `labelled ${classes[samples.label[i]]}`,
    `decided ${classes[samples.predicted[i]]}${after}`,
    `cluster ${samples.cluster[i]}, score ${samples.score[i]}${samples.flagged[i] ? ', flagged' : ''}`,
  ];
};
const sheet = find('#thumbnails');
await sheet.decode().catch(() => {});
const drawThumbnail = (canvas, i) => {
  const index = samples.thumbnail[i], {columns, width, height} = thumbnails;
  canvas.hidden = index < 0;
  if (index < 0) return;
  [canvas.width, canvas.height] = [width, height];
  const x = index % columns * width, y = Math.floor(index / columns) * height;
  canvas.getContext('2d').drawImage(sheet, x, y, width, height, 0, 0, width, height);
};

// The selection is one set of images. The map, the cards, the table and the list all show it.
const MOST_LISTED = 48, listeners = [];
const select = (indices, on) => {
  for (const i of indices) on ? selected.add(i) : selected.delete(i);
  listeners.forEach(listener => listener());
  announce(`${selected.size} selected`);
};
const toggle = indices => select(indices, !indices.every(i => selected.has(i)));
const clear = () => select([...selected], false);
listeners.push(() => {
  for (const count of findAll('[data-count]')) count.textContent = selected.size;
  for (const button of findAll('[data-save=selection], [data-clear]')) button.disabled = !selected.size;
  for (const button of findAll('[data-sample]')) button.setAttribute('aria-pressed', selected.has(+button.dataset.sample));
  const items = [...selected].slice(0, MOST_LISTED).map(i => {
    const item = make('li'), canvas = make('canvas');
    drawThumbnail(canvas, i);
    item.append(canvas, make('span', samples.id[i]));
    return item;
  });
  if (selected.size > MOST_LISTED) items.push(make('li', `and ${selected.size - MOST_LISTED} more`));
  find('#selected').replaceChildren(...items);
});
const save = (name, indices) => {
  const text = indices.map(i => samples.id[i] + '\n').join('');
  const link = make('a', '', {download: name, href: URL.createObjectURL(new Blob([text], {type: 'text/plain'}))});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
for (const button of findAll('[data-save]'))
  button.addEventListener('click', () => button.dataset.save === 'drop'
    ? save('drop.txt', [...samples.id.keys()].filter(i => samples.flagged[i]))
    : save('selection.txt', [...selected].sort((a, b) => a - b)));
for (const button of findAll('[data-clear]')) button.addEventListener('click', clear);
for (const button of findAll('[data-sample]')) button.addEventListener('click', () => toggle([+button.dataset.sample]));
for (const cell of findAll('td.pick')) {
  const indices = membersOf(cell);
  const button = make('button', 'select', {type: 'button', 'aria-pressed': false});
  button.addEventListener('click', () => toggle(indices));
  cell.append(button);
  listeners.push(() => {
    const count = indices.reduce((sum, i) => sum + selected.has(i), 0);
    button.textContent = count ? `${count} selected` : 'select';
    button.setAttribute('aria-label', `${button.textContent}: ${cell.dataset.name}`);
    button.setAttribute('aria-pressed', count === indices.length);
    cell.dataset.value = count;
  });
}
for (const element of findAll('.controls')) element.hidden = false;

// The map of one class.
if (samples.x) {
  find('#plot').hidden = false;
  const canvas = find('#canvas'), tip = find('#tip'), menu = find('#map-class'), context = canvas.getContext('2d');
  const SHAPES = ['circle', 'square', 'triangle', 'cross'], MARGIN = 16, NEAR = 14;
  // The images of the class, their places in pixels, the image in focus, and the rectangle that is being drawn.
  let shown = [], places = new Map(), focus = -1, corner = null, rectangle = null;
  let ignoreClick = false;  // the click that ends a rectangle selects nothing more
  const drawShape = (to, kind, x, y, r) => {
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
  const drawMark = (to, i, x, y, r) => {
    const style = getComputedStyle(document.documentElement), cluster = samples.cluster[i];
    const colour = style.getPropertyValue(samples.flagged[i] ? '--flagged' : `--c${cluster % 5}`);
    to.fillStyle = to.strokeStyle = colour;
    drawShape(to, samples.flagged[i] ? 'diamond' : SHAPES[cluster % 4], x, y, samples.flagged[i] ? r * 1.2 : r);
  };
  const paint = () => {
    const {width, height} = canvas.getBoundingClientRect(), density = window.devicePixelRatio || 1;
    if (!width) return;
    [canvas.width, canvas.height] = [Math.round(width * density), Math.round(height * density)];
    context.setTransform(density, 0, 0, density, 0, 0);
    places = new Map(shown.map(i => [i, [
      MARGIN + samples.x[i] / data.grid * (width - 2 * MARGIN),
      MARGIN + (1 - samples.y[i] / data.grid) * (height - 2 * MARGIN)]]));
    const r = shown.length > 2000 ? 2.6 : 3.6, ink = getComputedStyle(document.documentElement).getPropertyValue('--ink');
    context.globalAlpha = .75;
    for (const [i, [x, y]] of places) drawMark(context, i, x, y, r);
    context.globalAlpha = 1;
    context.strokeStyle = ink;
    for (const [i, [x, y]] of places) {
      if (!selected.has(i) && i !== focus) continue;
      context.lineWidth = i === focus ? 2.5 : 1.2;
      context.beginPath();
      context.arc(x, y, i === focus ? r + 5 : r + 2, 0, 7);
      context.stroke();
    }
    if (rectangle) {
      context.lineWidth = 1;
      context.setLineDash([4, 3]);
      context.strokeRect(...rectangle);
      context.setLineDash([]);
    }
  };
  const setFocus = (i, aloud) => {
    focus = i;
    tip.hidden = i < 0;
    if (i >= 0) {
      const [x, y] = places.get(i), lines = describe(i), {width, height} = canvas.getBoundingClientRect();
      if (samples.thumbnail[i] < 0) lines.push('this file has no picture of it');
      drawThumbnail(find('#tip-image'), i);
      find('#tip-text').textContent = lines.join('\n');
      tip.style.left = `${Math.max(0, Math.min(x + 14, width - tip.offsetWidth))}px`;
      tip.style.top = `${y + 14 + tip.offsetHeight < height ? y + 14 : Math.max(0, y - 14 - tip.offsetHeight)}px`;
      if (aloud) announce(lines.join(', '));
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
    menu.value = label;
    shown = [...samples.label.keys()].filter(i => samples.label[i] === label);
    shown.sort((a, b) => samples.flagged[a] - samples.flagged[b]);
    const clusters = [...new Set(shown.map(i => samples.cluster[i]))].sort((a, b) => a - b);
    find('#legend').replaceChildren(...clusters.map(cluster => {
      const indices = members.get(clusterKey(label, cluster)), item = make('li');
      const button = make('button', '', {type: 'button', title: 'select these'}), sign = make('canvas', '', {width: 32, height: 32});
      drawMark(sign.getContext('2d'), indices[0], 16, 16, 9);
      const flagged = samples.flagged[indices[0]] ? ', flagged' : '';
      button.append(sign, `cluster ${cluster} (${indices.length}${flagged})`);
      button.addEventListener('click', () => toggle(indices));
      item.append(button);
      return item;
    }));
    canvas.setAttribute('aria-label', `Map of ${shown.length} images of class ${classes[label]}`);
    setFocus(-1);
  };
  const pointOf = event => {
    const {left, top} = canvas.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  };
  const drag = (x, y) => {
    if (corner && Math.hypot(x - corner[0], y - corner[1]) > 4)
      rectangle = [Math.min(x, corner[0]), Math.min(y, corner[1]), Math.abs(x - corner[0]), Math.abs(y - corner[1])];
    return rectangle;
  };
  canvas.addEventListener('pointerdown', event => {
    if (event.button === 0 && event.pointerType !== 'touch') corner = pointOf(event);
  });
  canvas.addEventListener('pointermove', event => {
    const [x, y] = pointOf(event);
    if (drag(x, y)) return setFocus(-1);
    const [i, distance] = nearest(x, y), next = distance < NEAR ? i : -1;
    if (next !== focus) setFocus(next);
  });
  window.addEventListener('pointerup', event => {
    if (drag(...pointOf(event))) {
      const [x, y, width, height] = rectangle;
      rectangle = null;
      select(shown.filter(i => {
        const [px, py] = places.get(i);
        return px >= x && px <= x + width && py >= y && py <= y + height;
      }), true);
      ignoreClick = event.target === canvas;
    }
    corner = null;
  });
  canvas.addEventListener('click', event => {
    const [i, distance] = nearest(...pointOf(event));
    if (!ignoreClick && distance < NEAR) toggle([i]);
    ignoreClick = false;
  });
  const leave = () => { if (focus >= 0) setFocus(-1); };
  canvas.addEventListener('pointerleave', leave);
  canvas.addEventListener('blur', leave);
  const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  canvas.addEventListener('keydown', event => {
    const way = ARROWS[event.key];
    if (way) {
      const [x, y] = places.get(focus) ?? [MARGIN, canvas.getBoundingClientRect().height / 2];
      const ahead = (dx, dy) => dx * way[0] + dy * way[1] > .5 && Math.abs(dx * way[1] + dy * way[0]) <= dx * way[0] + dy * way[1];
      const [i] = focus < 0 ? nearest(x, y) : nearest(x, y, ahead);
      if (i >= 0) setFocus(i, true);
    } else if ((event.key === ' ' || event.key === 'Enter') && focus >= 0) toggle([focus]);
    else if (event.key === 'Escape') { clear(); setFocus(-1); }
    else return;
    event.preventDefault();
  });
  menu.addEventListener('change', () => open(+menu.value));
  const present = new Set(samples.label);
  classes.forEach((name, label) => { if (present.has(label)) menu.append(make('option', name, {value: label})); });
  open(data.first ?? samples.label[Math.max(0, samples.flagged.indexOf(1))]);
  listeners.push(paint);
  window.addEventListener('resize', paint);
  // Paper is bright, so the map is painted with bright colours before the page is printed.
  for (const [event, printing] of [['beforeprint', true], ['afterprint', false]])
    window.addEventListener(event, () => { document.documentElement.toggleAttribute('data-print', printing); paint(); });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => open(+menu.value));
  // A click on a mark of the impurity axis opens the map of its class and selects its cluster.
  for (const dot of findAll('.dot'))
    dot.addEventListener('click', () => {
      open(+dot.dataset.class);
      toggle(membersOf(dot));
    });
}
document.documentElement.dataset.ready = 'yes';
})();

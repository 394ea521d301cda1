(() => {
  const by = (id) => document.getElementById(id);
  let models = [], known = new Map(), writing = null;
  // Texts of users and models are set as text and never as HTML.
  const make = (tag, text, kind) => {
    const one = document.createElement(tag);
    if (text) one.textContent = text;
    if (kind) one.className = kind;
    return one;
  };
  const said = (text) => { const one = make('div', text, 'told'); one.dir = 'auto'; return one; };
  const show = (id, text, fault) => {
    by(id).textContent = text;
    by(id).classList.toggle('fault', Boolean(fault));
  };
  const ask = async (path, options = {}) => {
    const headers = { ...options.headers };
    if (by('key').value) headers.Authorization = 'Bearer ' + by('key').value;
    const answer = await fetch(path, { ...options, headers });
    if (answer.status === 401) by('key-part').hidden = false;
    if (!answer.ok) throw new Error((await answer.json().catch(() => null))?.error?.message ?? 'status ' + answer.status);
    return answer;
  };
  const get = async (path) => (await ask(path)).json();
  // The latest call counts; an earlier one that answers later is not shown.
  const latest = (look) => {
    let turn = 0;
    return async (value) => { const mine = ++turn; await look(value, () => mine === turn); };
  };

  // Waits for a pause in typing, because a search of titles reads all of them.
  const paused = (look) => {
    let timer = 0;
    return (value) => { clearTimeout(timer); timer = setTimeout(() => look(value), 200); };
  };

  const fillUsers = latest(async (start, current) => {
    const { users } = await get('/v1/users?count=20&start=' + encodeURIComponent(start));
    if (!current()) return;
    by('users').replaceChildren(...users.map((id) => { const one = make('option'); one.value = id; return one; }));
    by('user').placeholder = users[0] ?? '';
  });
  const showPast = latest(async (user, current) => {
    by('past').replaceChildren();
    if (!user) return show('user-state', 'Without a user, the prompt has no history.');
    const { reviews } = await get('/v1/users/' + encodeURIComponent(user) + '/reviews');
    if (!current()) return;
    show('user-state', reviews.length ? 'Past reviews, the newest first:'
      : 'The store has no reviews of this user; the prompt has no history.');
    by('past').replaceChildren(...reviews.map((review) => {
      const one = make('article'), title = make('h4', review.item.title || review.item_id);
      title.dir = 'auto';
      const facts = [review.rating === null ? '' : review.rating + ' of 5', review.title].filter(Boolean).join(' · ');
      const choose = make('button', 'Write about this item', 'small');
      choose.type = 'button';
      choose.addEventListener('click', () => {
        by('item').value = review.item_id;
        known.set(review.item_id, review.item);
        showItem(review.item_id).catch(fault('item-state'));
      });
      one.append(title, make('p', facts, 'example-facts'), said(review.text), choose);
      return one;
    }));
  });
  const showItem = latest(async (text, current) => {
    if (!text) { by('items').replaceChildren(); return show('item-state', ''); }
    const { items } = await get('/v1/items?count=20&text=' + encodeURIComponent(text));
    if (!current()) return;
    known = new Map(items.map((item) => [item.item_id, item]));
    by('items').replaceChildren(...items.map((item) => {
      const one = make('option', item.title);
      one.value = item.item_id;
      return one;
    }));
    const item = known.get(text);
    show('item-state', item ? item.title + (item.description ? ' — ' + item.description.slice(0, 300) : '')
      : 'No item with this id; the text is the title of an item that is not in the store.');
  });

  const box = (model) => {
    const one = make('article'), title = make('h3', model.method + ' ');
    title.append(make('small', model.adapter ? 'adapter ' + model.adapter : 'base model'));
    const text = said(''), facts = make('p', 'Waiting …', 'token-facts');
    text.classList.add('tokens-of-review');
    text.tabIndex = 0;
    text.setAttribute('role', 'group');
    text.setAttribute('aria-label', 'Draft of ' + model.method + '; arrow keys move from token to token');
    one.append(title, text, facts);
    return { one, text, facts };
  };
  const coloured = (unit) => {
    const one = make('span', unit.text, unit.preferred ? 'preferred' : '');
    one.style.cssText = unit.style;
    one.title = unit.title;
    return one;
  };
  const finish = ({ one, text, facts }, draft) => {
    if (draft.units.length) text.replaceChildren(...draft.units.map(coloured));
    else text.textContent = draft.text;
    const count = draft.history_shown.length, words = draft.likelier_words.slice(0, 12);
    facts.textContent = 'Rest the pointer on a token, or move to it with the arrow keys.';
    const about = draft.n_tokens + ' tokens' + (draft.finish_reason === 'length' ? ', cut at the limit' : '') + '; '
      + count + (count === 1 ? ' past review' : ' past reviews') + ' shown' + (draft.note ? '; ' + draft.note : '');
    const likelier = words.map(([word, effect]) => word + ' +' + effect.toFixed(2)).join(', ');
    one.append(make('p', about, 'example-facts'), make('p', 'Likelier by the history: ' + (likelier || 'no word'), 'example-facts'));
    tokenKeys(text);
  };
  const events = async function* (body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = '';
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split('\n\n');
      rest = parts.pop();
      for (const part of parts) {
        const field = (name) => part.split('\n').find((line) => line.startsWith(name + ': '))?.slice(name.length + 2);
        if (field('data')) yield [field('event'), JSON.parse(field('data'))];
      }
    }
  };
  const draft = async (model, form, signal) => {
    const shown = box(model);
    by('drafts').append(shown.one);
    try {
      const body = { ...form, method: model.id, explain: model.history, stream: true };
      if (!model.history) delete body.strength;
      const options = { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body), signal };
      for await (const [kind, data] of events((await ask('/v1/drafts', options)).body)) {
        if (kind === 'text') { shown.facts.textContent = ''; shown.text.append(data.text); }
        if (kind === 'draft') finish(shown, data);
        if (kind === 'error') throw new Error(data.error.message);
      }
    } catch (error) {
      if (signal.aborted) return;
      shown.facts.textContent = error.message;
      shown.facts.classList.add('fault');
    }
  };
  const write = async () => {
    writing?.abort();
    const mine = writing = new AbortController();
    const chosen = models.filter((model) => by('method-' + model.id).checked);
    const item = by('item').value.trim(), strength = Number(by('strength').value);
    if (!item && !by('description').value.trim()) return show('state', 'Choose an item, or describe one.', true);
    if (!chosen.length) return show('state', 'Choose a model.', true);
    const form = {
      item: known.has(item) ? item : { title: item, description: by('description').value.trim() },
      title: by('title').value, decoding: by('decoding').value,
    };
    if (by('user').value.trim()) form.user = by('user').value.trim();
    if (by('rating').value) form.rating = Number(by('rating').value);
    if (strength) form.strength = strength;
    by('drafts').replaceChildren();
    show('state', 'Writing …');
    await Promise.all(chosen.map((model) => draft(model, form, mine.signal)));
    if (!mine.signal.aborted) show('state', 'Done.');
  };

  const fault = (id) => (error) => show(id, error.message, true);
  const typedUser = paused((start) => fillUsers(start).catch(fault('user-state')));
  const typedItem = paused((text) => showItem(text).catch(fault('item-state')));
  by('user').addEventListener('input', () => typedUser(by('user').value));
  by('user').addEventListener('change', () => { showPast(by('user').value.trim()).catch(fault('user-state')); });
  by('item').addEventListener('input', () => typedItem(by('item').value.trim()));
  by('strength').addEventListener('input', () => {
    const value = Number(by('strength').value);
    const means = value === 0 ? ', as the model writes' : value === -1 ? ', as without the history' : '';
    by('strength-shown').textContent = value + means;
  });
  by('strength').addEventListener('change', () => { if (by('drafts').children.length) write().catch(fault('state')); });
  by('key').addEventListener('change', () => start().catch(fault('state')));
  by('ask').addEventListener('submit', (event) => { event.preventDefault(); write().catch(fault('state')); });

  const start = async () => {
    models = (await get('/v1/models')).data;
    const first = models.find((model) => !model.adapter && model.history) ?? models.find((model) => !model.adapter);
    const usual = new Set([first?.method, 'contextsft', models[0]?.method]);
    by('methods').replaceChildren(...models.map((model) => {
      const label = make('label', '', 'choice'), box = make('input');
      box.type = 'checkbox';
      box.id = 'method-' + model.id;
      box.checked = usual.has(model.method);
      label.append(box, make('span', model.method + ': ' + model.summary));
      return label;
    }));
    show('state', '');
    await Promise.all([fillUsers(''), showPast('')]);
  };
  start().catch(fault('state'));
})();

// The cells of the matrix for one client of TypeScript: SCRIPT CELLS.json. What a cell is tells ../../matrixcells_test.go; this
// prints a line of JSON for each probe, {cell, what, ok, saw}.
import fs from 'node:fs';
import { text } from './checks.mjs';

export const roots = [{ uri: 'file:///work', name: 'work' }];
export const sampled = { role: 'assistant', model: 'none', content: { type: 'text', text: 'Paris' } };

const { cells, parallel } = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'));
const report = (cell, what, ok, saw) => console.log(JSON.stringify({ cell: cell.id, what, ok, saw: String(saw ?? '').slice(0, 500) }));

function within(ms, promise) {
  let timer;
  return Promise.race([promise, new Promise((_, reject) => { timer = setTimeout(reject, ms, new Error(`nothing within ${ms} ms`)); })]).finally(() => clearTimeout(timer));
}

function wanted(p, saw) {
  if (saw !== p.want) throw new Error(`${saw}, not ${p.want}`);
  return saw;
}

// probe returns what it saw; an error is an outcome too.
async function probe(client, p, timeout) {
  switch (p.kind) {
    case 'list': {
      const names = await client.list();
      if (!names.includes(p.tool)) throw new Error(`no ${p.tool} among ${names}`);
      return names.length;
    }
    case 'call':
    case 'stream': {
      const result = await client.call(p.tool, p.arguments, p.kind === 'stream' ? { timeout, onprogress: () => {} } : { timeout });
      if (result.isError || !text(result).includes(p.want)) throw new Error(`${result.isError ? 'isError' : 'result'}: ${text(result)}`);
      return text(result);
    }
    case 'update': {
      const heard = client.updated(p.uri);
      await client.subscribe(p.uri);
      if (p.tool) await client.call(p.tool, p.arguments ?? {}, { timeout });
      return heard;
    }
    case 'unsubscribe':
      await client.unsubscribe(p.uri);
      return probe(client, { ...p, kind: 'call' }, timeout);
    case 'pages': {
      const counts = [];
      for (const [what, names] of Object.entries(await client.all())) counts.push(`${names.filter((n) => n.includes(p.tool)).length} ${what}`);
      return wanted(p, counts.join(', '));
    }
    case 'read':
      return wanted(p, (await client.read(p.uri)).contents[0].text);
    case 'prompt':
      return wanted(p, (await client.prompt(p.tool)).messages[0].content.text);
    case 'changes': {
      const lists = ['tools', 'prompts', 'resources'];
      const all = Promise.all(lists.map((list) => client.changed(list)));
      await client.listenForLists();
      await client.call(p.tool, {}, { timeout });
      await all;
      return lists.join(' ');
    }
    case 'progress': {
      let heard = 0;
      await client.call(p.tool, p.arguments, { timeout, onprogress: () => { heard++; } });
      return wanted(p, `${heard} times`);
    }
    case 'level': {
      await client.setLevel('warning');
      const levels = client.logged(p.want.split(' ').length); // after it: some servers log before they are told how much
      await client.call(p.tool, {}, { timeout, level: 'warning' });
      return wanted(p, (await levels).join(' '));
    }
    case 'cancel': {
      const leave = new AbortController();
      const over = client.call(p.tool, p.arguments, { timeout, signal: leave.signal, onprogress: () => leave.abort() }).then(text, (err) => err.message);
      const how = await over;
      if (!leave.signal.aborted) throw new Error(`it ended by itself: ${how}`);
      return how;
    }
    default:
      throw new Error(`no probe ${p.kind}`);
  }
}

// run does all cells, some at a time. connect(cell, hears) gives {list, call, close} and, for cells whose probes need them, {all, read, prompt,
// subscribe, unsubscribe, listenForLists, setLevel}; it calls hears.updated(uri), hears.changed(list) and hears.logged(level) as it is told so.
export async function run(connect) {
  const waiting = [...cells];
  const worker = async () => {
    for (let cell = waiting.shift(); cell; cell = waiting.shift()) {
      const timeout = cell.timeoutMs;
      const told = [];
      const levels = [];
      const hear = (what) => told.filter((w) => w.what === what).forEach((w) => w.resolve(what));
      let client;
      try {
        client = await within(timeout, connect(cell, { updated: hear, changed: hear, logged: (level) => { levels.push(level); hear(`${levels.length} logged`); } }));
        client.updated = client.changed = (what) => new Promise((resolve) => { told.push({ what, resolve }); });
        client.logged = (n) => { levels.length = 0; return client.changed(`${n} logged`).then(() => levels); };
      } catch (err) {
        report(cell, 'connects', false, err.message);
        continue;
      }
      for (const p of cell.probes) {
        try {
          const limit = p.timeoutMs ?? timeout;
          report(cell, p.what, true, await within(limit, probe(client, p, limit)));
        } catch (err) {
          report(cell, p.what, false, err.message);
        }
      }
      try {
        await within(5000, client.close());
      } catch { /* it ends anyway */ }
    }
  };
  await Promise.all(Array.from({ length: parallel }, worker));
  process.exit(0);
}

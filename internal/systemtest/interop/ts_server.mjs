// A server of the stateless era alone, which refuses `initialize`, with the SDK of TypeScript, v2: ts_server.mjs PORT. Its lists have pages of
// ten, and all that does something is on the last one.
import { createServer } from 'node:http';
import { toNodeHandler } from '@modelcontextprotocol/node';
import { acceptedContent, createMcpHandler, fromJsonSchema, inputRequired, McpServer } from '@modelcontextprotocol/server';

const numbers = (n) => Array.from({ length: n }, (_, i) => String(i).padStart(2, '0'));
const text = (s) => ({ content: [{ type: 'text', text: String(s) }] });
const object = (properties = {}) => ({ type: 'object', properties, required: Object.keys(properties) });
const string = { type: 'string' };

// State that callers change and others ask for; who waits for it is told.
const watched = [], left = new Set(), waiting = new Set();
const changed = () => waiting.forEach((look) => look());
function until(holds, signal) {
  return new Promise((resolve) => {
    const look = () => { if (holds() || signal.aborted) { waiting.delete(look); resolve(holds()); } };
    waiting.add(look);
    signal.addEventListener('abort', look);
    look();
  });
}

const tools = [
  ...numbers(25).map((n) => ({ name: `page_${n}`, run: () => text(`tool ${n}`) })),
  {
    name: 'ask', // twice, and what it heard first is in the state that the client brings back
    run: (_, ctx) => {
      const answer = acceptedContent(ctx.mcpReq.inputResponses, 'it'), first = ctx.mcpReq.requestState();
      if (answer && first) return text(`Hello, ${first} and ${answer.name}!`);
      return inputRequired({
        inputRequests: { it: inputRequired.elicit({ message: answer ? 'And who else?' : 'Who are you?', requestedSchema: object({ name: string }) }) },
        ...answer && { requestState: answer.name },
      });
    },
  },
  { name: 'change', run: () => { handler.notify.toolsChanged(); handler.notify.promptsChanged(); handler.notify.resourcesChanged(); return text('changed'); } },
  { name: 'touch', input: object({ uri: string }), run: ({ uri }) => { handler.notify.resourceUpdated(uri); return text('touched'); } },
  {
    name: 'watched', // waits until so many listen for a resource
    input: object({ uri: string, by: { type: 'number' } }),
    run: async ({ uri, by }, ctx) => {
      const listening = () => watched.filter((uris) => uris.includes(uri)).length;
      await until(() => listening() === by, ctx.mcpReq.signal);
      return text(`by ${listening()}`);
    },
  },
  {
    name: 'count',
    run: async (_, ctx) => {
      for (const progress of [1, 2, 3]) await ctx.mcpReq.notify({ method: 'notifications/progress', params: { progressToken: ctx.mcpReq._meta.progressToken, progress, total: 3 } });
      return text('counted');
    },
  },
  { name: 'log', run: async (_, ctx) => { for (const level of ['debug', 'warning', 'error']) await ctx.mcpReq.log(level, level); return text('logged'); } },
  {
    name: 'hold', // until its caller leaves
    input: object({ key: string }),
    run: async ({ key }, ctx) => {
      await ctx.mcpReq.notify({ method: 'notifications/progress', params: { progressToken: ctx.mcpReq._meta.progressToken, progress: 1 } });
      await until(() => false, ctx.mcpReq.signal);
      left.add(key);
      changed();
      return text('left');
    },
  },
  { name: 'left', input: object({ key: string }), run: async ({ key }, ctx) => text(await until(() => left.has(key), ctx.mcpReq.signal) ? 'left' : 'held') },
  { name: 'where', input: object({ region: { ...string, 'x-mcp-header': 'Region' } }), run: ({ region }, ctx) => text(`${region}, ${ctx.http.req.headers.get('mcp-param-region')}`) },
].map((tool) => ({ input: object(), ...tool }));
const resources = numbers(25).map((n) => ({ uri: `page://resource/${n}`, name: `page ${n}` }));
const templates = numbers(12).map((n) => ({ uriTemplate: `page://template/${n}/{id}`, name: `page ${n}` }));
const prompts = numbers(25).map((n) => ({ name: `page_${n}` }));

// pages is the handler of a list. What a cursor looks like is the server's business, and this one has what must be escaped.
const pages = (key, all) => ({ params }) => {
  const from = params?.cursor ? Number(params.cursor.split('"')[1]) : 0;
  return { [key]: all.slice(from, from + 10), ...from + 10 < all.length && { nextCursor: `from "${from + 10}" \\ é` } };
};

const handler = createMcpHandler(() => {
  const it = new McpServer({ name: 'pages', version: '1' }, {
    capabilities: { tools: { listChanged: true }, prompts: { listChanged: true }, resources: { listChanged: true, subscribe: true }, logging: {} },
  });
  for (const { name, input, run } of tools) it.registerTool(name, { inputSchema: fromJsonSchema(input) }, run);
  it.server.setRequestHandler('tools/list', pages('tools', tools.map(({ name, input }) => ({ name, inputSchema: input }))));
  it.server.setRequestHandler('resources/list', pages('resources', resources));
  it.server.setRequestHandler('resources/templates/list', pages('resourceTemplates', templates));
  it.server.setRequestHandler('prompts/list', pages('prompts', prompts));
  it.server.setRequestHandler('resources/read', ({ params: { uri } }) => ({ contents: [{ uri, text: `text of ${uri}` }] }));
  it.server.setRequestHandler('prompts/get', ({ params: { name } }) => ({ messages: [{ role: 'user', content: { type: 'text', text: `prompt ${name}` } }] }));
  return it;
}, { legacy: 'reject' });

createServer(toNodeHandler({
  async fetch(request, options) {
    const body = await request.clone().json().catch(() => undefined);
    const response = await handler.fetch(request, options);
    const uris = body?.method === 'subscriptions/listen' && body.params?.notifications?.resourceSubscriptions;
    if (uris) {
      watched.push(uris);
      changed();
      request.signal.addEventListener('abort', () => { watched.splice(watched.indexOf(uris), 1); changed(); });
    }
    return response;
  },
})).listen(Number(process.argv[2]), 'localhost');

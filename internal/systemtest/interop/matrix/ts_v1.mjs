// TypeScript SDK v1. It has no way to choose a revision: it speaks the newest of the session era.
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { SSEClientTransport } from '@modelcontextprotocol/sdk/client/sse.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { CallToolResultSchema, CreateMessageRequestSchema, ElicitRequestSchema, ListRootsRequestSchema, LoggingMessageNotificationSchema, PromptListChangedNotificationSchema, ResourceListChangedNotificationSchema, ResourceUpdatedNotificationSchema, ToolListChangedNotificationSchema } from '@modelcontextprotocol/sdk/types.js';
import { roots, run, sampled } from './cells.mjs';

// all follows the pages of a list.
async function all(list, key) {
  const found = [];
  for (let page, cursor; !page || cursor; cursor = page.nextCursor) {
    page = await list(cursor ? { cursor } : {});
    found.push(...page[key]);
  }
  return found;
}

await run(async (cell, hears) => {
  const client = new Client({ name: 'ts-v1', version: '1' }, { capabilities: { sampling: {}, elicitation: {}, roots: {} } });
  client.setRequestHandler(CreateMessageRequestSchema, async () => sampled);
  client.setRequestHandler(ElicitRequestSchema, async () => ({ action: 'accept', content: cell.elicit }));
  client.setRequestHandler(ListRootsRequestSchema, async () => ({ roots }));
  client.setNotificationHandler(ResourceUpdatedNotificationSchema, (n) => hears.updated(n.params.uri));
  client.setNotificationHandler(ToolListChangedNotificationSchema, () => hears.changed('tools'));
  client.setNotificationHandler(PromptListChangedNotificationSchema, () => hears.changed('prompts'));
  client.setNotificationHandler(ResourceListChangedNotificationSchema, () => hears.changed('resources'));
  client.setNotificationHandler(LoggingMessageNotificationSchema, (n) => hears.logged(n.params.level));
  const transport = new (cell.pin === 'sse' ? SSEClientTransport : StreamableHTTPClientTransport)(new URL(cell.url));
  await client.connect(transport);
  return {
    list: async () => (await client.listTools()).tools.map((t) => t.name),
    all: async () => ({
      tools: (await all((p) => client.listTools(p), 'tools')).map((t) => t.name),
      resources: (await all((p) => client.listResources(p), 'resources')).map((r) => r.uri),
      templates: (await all((p) => client.listResourceTemplates(p), 'resourceTemplates')).map((t) => t.uriTemplate),
      prompts: (await all((p) => client.listPrompts(p), 'prompts')).map((p) => p.name),
    }),
    call: (name, args, options) => client.callTool({ name, arguments: args }, CallToolResultSchema, options),
    setLevel: (level) => client.setLoggingLevel(level),
    read: (uri) => client.readResource({ uri }),
    prompt: (name) => client.getPrompt({ name }),
    subscribe: (uri) => client.subscribeResource({ uri }),
    unsubscribe: (uri) => client.unsubscribeResource({ uri }),
    listenForLists: async () => {},
    close: async () => { await transport.terminateSession?.(); await client.close(); },
  };
});

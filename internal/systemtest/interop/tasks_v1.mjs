// Tasks of 2025-11-25: TypeScript SDK v1 with the reference server-everything.
import { Client } from '@modelcontextprotocol/sdk/client/index.js';
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js';
import { ElicitRequestSchema, TaskStatusNotificationSchema } from '@modelcontextprotocol/sdk/types.js';
import { check, text } from './checks.mjs';

const client = new Client({ name: 'tasks-v1', version: '1' }, { capabilities: { elicitation: {}, tasks: { list: {}, cancel: {} } } });
client.setRequestHandler(ElicitRequestSchema, async () => ({ action: 'accept', content: { interpretation: 'technical' } }));
const told = new Set();
client.setNotificationHandler(TaskStatusNotificationSchema, (n) => told.add(n.params.taskId));
const transport = new StreamableHTTPClientTransport(new URL(process.env.SESSION_URL));
await client.connect(transport);
check('offers tasks', client.getServerCapabilities().tasks?.requests?.tools?.call !== undefined, client.getServerCapabilities());
await client.listTools();

const made = [];
for (const target of ['one', 'two']) {
  for (const ambiguous of [false, true]) {
    let id, result;
    const statuses = [];
    for await (const m of client.experimental.tasks.callToolStream({ name: `${target}_simulate-research-query`, arguments: { topic: `of ${target}`, ambiguous } })) {
      if (m.type === 'taskCreated') id = m.task.taskId;
      if (m.type === 'taskStatus') statuses.push(m.task.status);
      if (m.type === 'error') throw m.error;
      if (m.type === 'result') result = m.result;
    }
    made.push(id);
    check(`${target}: a task comes to its result`, text(result).includes(`of ${target}`), result);
    check(`${target}: with the id that it was given`, result._meta?.['io.modelcontextprotocol/related-task']?.taskId === id, result._meta);
    if (ambiguous) check(`${target}: having asked`, statuses.includes('input_required') && text(result).includes('technical'), [statuses, result]);
    check(`${target}: tasks/get`, (await client.experimental.tasks.getTask(id)).status === 'completed', id);
  }
}
const listed = [];
for (let cursor; ; ) {
  const page = await client.experimental.tasks.listTasks(cursor);
  listed.push(...page.tasks.map((t) => t.taskId));
  if (!(cursor = page.nextCursor)) break;
}
check('lists the tasks of both', made.every((id) => listed.includes(id)), [made, listed]);
check('was told of none that it does not know', [...told].every((id) => listed.includes(id)), [...told]);
for await (const m of client.experimental.tasks.callToolStream({ name: 'one_simulate-research-query', arguments: { topic: 'x' } })) {
  if (m.type !== 'taskCreated') continue;
  check('cancels', (await client.experimental.tasks.cancelTask(m.task.taskId)).status === 'cancelled');
  break;
}
await transport.terminateSession();
process.exit(0);

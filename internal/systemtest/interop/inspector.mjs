// The MCP inspector's command lines, both eras: `--cli`, one process per command, and for what needs a connection that
// lasts (completion, subscriptions) its companion `mcpdo`.
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { check, text } from './checks.mjs';

// The inspector keeps state in the home folder; this one is the run's own.
const env = { ...process.env, HOME: path.join(process.env.OUT, 'inspector-home'), MCP_INSPECTOR_SECRET_STORE: 'memory' };
fs.mkdirSync(env.HOME, { recursive: true });
const clients = path.join(process.env.INSPECTOR, 'clients');

function inspect(url, era, method, ...args) {
  const out = execFileSync(process.execPath, [path.join(clients, 'launcher/build/index.js'), '--cli', url, '--transport', 'http', '--protocol-era', era, '--method', method, ...args],
    { env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], timeout: 60000 });
  return out.trim() ? JSON.parse(out) : {};
}
for (const [era, url, second] of [['legacy', process.env.SESSION_URL, 'npm_'], ['modern', process.env.STATELESS_URL, 'fast_']]) {
  const tools = inspect(url, era, 'tools/list').tools.map((t) => t.name);
  check(`${era}: list`, tools.includes('go_test_simple_text') && tools.some((t) => t.startsWith(second)), tools);
  check(`${era}: call`, text(inspect(url, era, 'tools/call', '--tool-name', 'go_test_simple_text')).length > 0);
  const read = inspect(url, era, 'resources/read', '--uri', 'go+test://static-text');
  check(`${era}: read`, read.contents[0].text.length > 0, read);
  const prompt = inspect(url, era, 'prompts/get', '--prompt-name', 'go_test_prompt_with_arguments', '--prompt-args', 'arg1=a', 'arg2=b');
  check(`${era}: prompt`, prompt.messages.length > 0, prompt);
}

function mcpdo(...args) {
  const out = execFileSync(process.execPath, [path.join(clients, 'mcpdo/build/mcp-bin.js'), '--format', 'json', ...args],
    { env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], timeout: 60000 });
  return out.trim() ? JSON.parse(out) : {};
}
try {
  const connection = mcpdo('connect', process.env.SESSION_URL, '--transport', 'http', '--era', 'legacy').name;
  const completed = mcpdo('--connection', connection, 'prompts/complete', '--complete-ref-type', 'ref/prompt',
    '--complete-ref', 'go_test_prompt_with_arguments', '--complete-arg-name', 'arg1', '--complete-arg-value', 'p');
  check('complete', JSON.stringify(completed).includes('"values"'), completed);
  // Prints updates until it is stopped; the server sends one every few seconds.
  const subscription = spawn(process.execPath, [path.join(clients, 'mcpdo/build/mcp-bin.js'), '--format', 'json', '--connection', connection,
    'resources/subscribe', 'go+test://watched-resource'], { env, stdio: ['ignore', 'pipe', 'ignore'], timeout: 60000 });
  let seen = '';
  subscription.stdout.on('data', (chunk) => { seen += chunk; if (seen.includes('resources/updated')) subscription.kill('SIGINT'); });
  await once(subscription, 'exit');
  check('subscribe', seen.includes('go+test://watched-resource') && seen.includes('resources/updated'), seen);
  mcpdo('disconnect', connection);
} finally {
  mcpdo('daemon', 'stop');
}
process.exit(0);

// The MCP inspector's command line, both eras: one process per command, as people use it.
import { execFileSync } from 'node:child_process';
import { check, text } from './checks.mjs';

function inspect(url, era, method, ...args) {
  const out = execFileSync(process.execPath, [process.env.INSPECTOR, '--cli', url, '--transport', 'http', '--protocol-era', era, '--method', method, ...args],
    { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], timeout: 60000 });
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
process.exit(0);

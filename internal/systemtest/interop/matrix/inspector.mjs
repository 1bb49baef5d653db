// The cells of the matrix for the inspector's command line, one process for each probe: inspector.mjs CELLS.json. See cells.mjs.
import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { run } from './cells.mjs';

// The inspector keeps state in the home folder; this one is the run's own.
const env = { ...process.env, HOME: path.join(process.env.OUT, 'inspector-home'), MCP_INSPECTOR_SECRET_STORE: 'memory' };
fs.mkdirSync(env.HOME, { recursive: true });

await run(async (cell) => {
  const inspect = async (method, ...args) => {
    const how = cell.pin === 'sse' ? ['--transport', 'sse', '--protocol-era', 'legacy'] : ['--transport', 'http', '--protocol-era', cell.pin];
    const command = [path.join(process.env.INSPECTOR, 'clients/launcher/build/index.js'), '--cli', cell.url, ...how, '--method', method, ...args];
    const { stdout } = await promisify(execFile)(process.execPath, command, { env, timeout: cell.timeoutMs }).catch((err) => { throw new Error(err.stdout + err.stderr); });
    return JSON.parse(stdout);
  };
  return {
    list: async () => (await inspect('tools/list')).tools.map((t) => t.name),
    call: (name, args) => inspect('tools/call', '--tool-name', name, ...Object.entries(args).flatMap(([k, v]) => ['--tool-arg', `${k}=${v}`])),
    close: async () => {},
  };
});

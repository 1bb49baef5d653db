// The inspector's web page, connecting from the browser itself (not through its own proxy), as any web client would.
// Its 1.x line is the last whose page can do that.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { chromium } from 'playwright-core';
import { check } from './checks.mjs';

const port = process.env.PORT;
const origin = `http://localhost:${port}`;
const web = spawn(process.execPath, [path.join(process.env.INSPECTOR, 'client/bin/client.js')],
  { env: { ...process.env, CLIENT_PORT: port, MCP_AUTO_OPEN_ENABLED: 'false' }, stdio: ['ignore', 'pipe', 'inherit'] });
let browser;
try {
  await once(web.stdout, 'data');
  browser = await chromium.launch({
    executablePath: '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
  const page = await browser.newPage({ viewport: { width: 1400, height: 1000 } });
  const statuses = [];
  page.on('response', (r) => { if (r.url().startsWith(process.env.SESSION_URL)) statuses.push(`${r.request().method()} ${r.status()}`); });
  await page.addInitScript(() => localStorage.setItem('lastConnectionType', 'direct'));
  await page.goto(`${origin}/?transport=streamable-http&serverUrl=${encodeURIComponent(process.env.SESSION_URL)}`);
  await page.getByRole('button', { name: 'Connect', exact: true }).click();
  await page.getByText('Connected', { exact: true }).waitFor({ timeout: 20000 });
  check('connects across origins', statuses.some((s) => s === 'POST 200'), statuses);
  await page.getByRole('tab', { name: 'Tools' }).click();
  await page.getByRole('button', { name: 'List Tools' }).click();
  await page.getByText('Echo Tool').first().waitFor({ timeout: 20000 });
  check('lists tools of both targets', await page.getByText('go_test_simple_text').first().isVisible());
  await page.getByText('Echo Tool').first().click();
  await page.locator('textarea#message, textarea[name="message"], #message').first().fill('hello from a page');
  await page.getByRole('button', { name: 'Run Tool' }).click();
  await page.getByText('Echo: hello from a page').first().waitFor({ timeout: 20000 });
  check('calls a tool', true);
  await page.screenshot({ path: path.join(process.env.OUT, 'page.png') });
} catch (err) {
  const page = browser?.contexts()[0]?.pages()[0];
  await page?.screenshot({ path: path.join(process.env.OUT, 'page.png') });
  throw err;
} finally {
  await browser?.close();
  web.kill();
}
process.exit(0);

/**
 * What the end-to-end tests share: a browser, a network that can be cut, and sessions that are
 * removed afterwards. The server is somebody else's: HOLDFAST_URL and HOLDFAST_TOKEN tell where it
 * is; it may run real VMs or simulated ones.
 */

import { mkdtemp, rm } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { chromium } from 'playwright-core';

function needed(name) {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set: it tells the tests which server to use`);
  return value;
}

export const url = needed('HOLDFAST_URL').replace(/\/+$/, '');
export const token = needed('HOLDFAST_TOKEN');
/** Longest time from asking for a session to its desktop, in ms. A cold boot without KVM is slow. */
export const START_MS = Number(process.env.HOLDFAST_E2E_START_MS ?? 240_000);
/** Longest time for anything that needs no machine to start. */
export const SOON_MS = 20_000;

/** A request as a program makes it. */
export async function call(method, path, body) {
  const response = await fetch(url + path, {
    method,
    headers: {
      authorization: `Bearer ${token}`,
      ...(body && { 'content-type': 'application/json' }),
    },
    ...(body && { body: JSON.stringify(body) }),
  });
  const text = await response.text();
  return { status: response.status, body: text ? JSON.parse(text) : null };
}

/** Whether real machines run behind the server. */
export async function isSimulated() {
  return (await call('GET', '/api/version')).body.driver === 'sim';
}

/** A browser with an empty profile. */
export async function openBrowser(options = {}) {
  const profile = await mkdtemp(join(tmpdir(), 'holdfast-e2e-'));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.HOLDFAST_CHROMIUM ?? '/usr/bin/chromium',
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
    viewport: { width: 1280, height: 800 },
    ...options,
  });
  context.setDefaultTimeout(SOON_MS);
  const errors = [];
  context.on('weberror', (error) => errors.push(String(error.error())));
  return {
    context,
    /** Uncaught errors of pages. */
    errors,
    page: context.pages()[0] ?? (await context.newPage()),
    async close() {
      await context.close();
      await rm(profile, { recursive: true, force: true });
    },
  };
}

/**
 * The way between browser and server, on a port of its own, which can be cut (connections break and
 * are refused) or frozen (nothing arrives any more, and nobody is told).
 */
export async function openWire() {
  const target = new URL(url);
  const pairs = new Set();
  let mode = 'good';
  const server = net.createServer((near) => {
    if (mode === 'cut') {
      near.destroy();
      return;
    }
    const far = net.connect(Number(target.port || 80), target.hostname);
    const pair = { near, far };
    pairs.add(pair);
    const end = () => {
      pairs.delete(pair);
      near.destroy();
      far.destroy();
    };
    for (const [from, to] of [
      [near, far],
      [far, near],
    ]) {
      from.on('data', (chunk) => {
        if (mode !== 'frozen' && !to.write(chunk)) {
          from.pause();
          to.once('drain', () => from.resume());
        }
      });
      from.on('error', end);
      from.on('close', end);
    }
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    /** `good`, `cut` or `frozen`. Connections that were frozen never come back. */
    set(next) {
      const wasFrozen = mode === 'frozen';
      mode = next;
      if (next === 'cut' || wasFrozen) {
        for (const { near, far } of pairs) {
          near.destroy();
          far.destroy();
        }
      }
    },
    async close() {
      this.set('cut');
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

const made = new Set();

/** The id in a page's address; the session is removed after the tests. */
export function sessionOf(page) {
  const id = new URL(page.url()).searchParams.get('session');
  if (id) made.add(id);
  return id;
}

/** Ends every session that the tests made and waits until each is gone. */
export async function cleanUp() {
  for (const id of made) {
    await call('DELETE', `/api/sessions/${id}`);
  }
  for (const id of made) {
    await until(async () => {
      const { status } = await call('GET', `/api/sessions/${id}`);
      return status === 410 || status === 404;
    }, `the end of session ${id}`);
  }
  made.clear();
}

/** Waits until `check` answers something true. */
export async function until(check, what, timeoutMs = SOON_MS) {
  const deadline = Date.now() + timeoutMs;
  for (;;) {
    const value = await check();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`waited ${timeoutMs} ms in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/** Waits until a value stays the same for a second. */
export async function settled(read, what, timeoutMs = SOON_MS) {
  let last;
  let since = 0;
  await until(
    async () => {
      const now = await read();
      if (now !== last) since = Date.now();
      last = now;
      return Date.now() - since > 1_000;
    },
    `${what} to come to rest`,
    timeoutMs,
  );
}

/** Signs a browser in and leaves it at the list. */
export async function signIn(page, base = url, secret = token) {
  await page.goto(`${base}/?token=${encodeURIComponent(secret)}`);
  await page.getByRole('button', { name: 'New session' }).first().waitFor();
}

/** Makes a session by clicking; answers its id while its machine is still being made. */
export async function newSession(page, name, { memoryMib } = {}) {
  await page.getByRole('button', { name: 'New session' }).first().click();
  const dialog = page.getByRole('dialog', { name: 'New session' });
  await dialog.getByLabel('Name').fill(name);
  if (memoryMib) {
    await dialog.getByText('More settings').click();
    await dialog.getByLabel('Memory in MiB').fill(String(memoryMib));
  }
  await dialog.getByRole('button', { name: 'Start session' }).click();
  await page.waitForURL(/\?session=/);
  return sessionOf(page);
}

/** Waits until the desktop is connected and has painted something. */
export async function desktopIsLive(page, timeout = START_MS) {
  await page.locator('.stage[data-live="true"]').waitFor({ timeout });
}

let pictures = 0;

/**
 * Keeps a picture of the page for people, where HOLDFAST_E2E_PICTURES names a directory. Its name
 * begins with that of the test and a number, unless `alone`.
 */
export async function picture(page, name, { alone = false } = {}) {
  const dir = process.env.HOLDFAST_E2E_PICTURES;
  if (!dir) return;
  pictures += 1;
  const test = basename(process.argv[1], '.test.js');
  const number = String(pictures).padStart(2, '0');
  const file = alone ? name : `${test} ${number} ${name}`;
  await page.screenshot({ path: join(dir, `${file.replaceAll(' ', '-')}.png`) });
}

/** How many different colours a sample of the desktop has. */
export async function coloursOf(page) {
  return page.locator('.target canvas').evaluate((canvas) => {
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    const seen = new Set();
    for (let i = 0; i < data.length; i += 4 * 97) {
      seen.add((data[i] << 16) | (data[i + 1] << 8) | data[i + 2]);
    }
    return seen.size;
  });
}

/** Where the terminal begins on the desktop, from its top; see the image's openbox.xml and Xresources. */
export const TERMINAL_FROM = 0.74;

/** Clicks into the terminal on the desktop's picture, once it shows a prompt: keys go there then. */
export async function enterTerminal(page) {
  await until(async () => (await written(page)) > 60, 'a prompt on the picture', START_MS);
  const canvas = page.locator('.target canvas');
  const { width, height } = await canvas.boundingBox();
  await canvas.click({ position: { x: width / 2, y: height * 0.9 } });
  // Only then: keys that come before the window manager saw the click go nowhere.
  await until(() => hasCursor(page), 'a filled cursor, as of a terminal with the focus', START_MS);
}

/** How many pixels of the desktop's terminal are near a colour, or with `not` are not. */
function terminalPixels(page, colour, not = false) {
  return page.locator('.target canvas').evaluate(
    (canvas, { colour, not, from }) => {
      const top = Math.ceil(canvas.height * from) + 8;
      const { data } = canvas
        .getContext('2d')
        .getImageData(16, top, canvas.width - 32, canvas.height - top - 8);
      let found = 0;
      for (let i = 0; i < data.length; i += 4) {
        // A compressed picture is not exact.
        if (colour.every((c, at) => Math.abs(c - data[i + at]) < 30) !== not) found += 1;
      }
      return found;
    },
    { colour, not, from: TERMINAL_FROM },
  );
}

/** Whether its cursor is a block; without the focus it is a frame. */
const hasCursor = async (page) => (await terminalPixels(page, [0xf0, 0xb4, 0x5a])) > 80;

/** How much is written in the desktop's terminal, in pixels; a character is some 30. */
export const written = (page) => terminalPixels(page, [0x17, 0x1c, 0x26], true);

/** Runs a script in a session's machine, as its user; answers exit code and output. */
export async function inGuest(id, script, { root = false } = {}) {
  const { status, body } = await call('POST', `/api/sessions/${id}/exec`, {
    command: ['bash', '-c', script],
    root,
  });
  if (status !== 200) throw new Error(`${script}: ${status} ${JSON.stringify(body)}`);
  return { code: body.exitCode, output: Buffer.from(body.stdout, 'base64').toString() };
}

/** Text on the terminal's screen. */
export async function terminalText(page) {
  const rows = await page.locator('.xterm-rows > div').allTextContents();
  return rows.map((row) => row.replaceAll('\u00a0', ' ').trimEnd()).join('\n');
}

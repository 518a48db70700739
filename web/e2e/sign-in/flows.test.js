/**
 * Whole sign-ins as a person does them: a tile, the steps, the provider's pages typed into on the
 * live desktop, the credentials taken home. Needs a server with real machines whose providers
 * `loopback`, `paste` and `device` sign in with the provider of crates/holdfast-testkit/oidc;
 * HOLDFAST_E2E_FILES names a directory for what is downloaded.
 */

import assert from 'node:assert/strict';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { Decrypter, generateX25519Identity, identityToRecipient } from 'age-encryption';
import {
  START_MS,
  call,
  cleanUp,
  desktopIsLive,
  openBrowser,
  picture,
  sessionOf,
  signIn,
  token,
  until,
  url,
} from '../harness.js';

/** Longest time that a page may take in a machine without hardware virtualisation. */
const PAGE_MS = 300_000;
/** Colours of the provider's pages, see server.mjs. */
const LOGIN = [0x2a, 0x9d, 0x8f];
const CONSENT = [0xe9, 0xa0, 0x3b];
const CONFIRM = [0x5b, 0x5b, 0xd6];
const USER_CODE = [0xb2, 0x3a, 0x8e];
const CODE = [0x3a, 0x7d, 0x44];

const files = process.env.HOLDFAST_E2E_FILES;

describe('a sign-in through the dashboard', { timeout: 3 * (START_MS + 3 * PAGE_MS) }, () => {
  let browser;
  let page;

  before(async () => {
    assert.ok(files, 'HOLDFAST_E2E_FILES is not set');
    browser = await openBrowser({ acceptDownloads: true });
    page = browser.page;
    await signIn(page);
  });

  after(async () => {
    await browser?.close();
    await cleanUp();
  });

  /** Picks a tile and waits for the tool's link. */
  async function begin(title, recipient) {
    await page.goto(url);
    await page.getByRole('button', { name: 'New session' }).first().click();
    const dialog = page.getByRole('dialog', { name: 'New session' });
    await dialog.locator('.tile', { hasText: title }).click();
    await picture(page, `${title} tiles`);
    if (recipient) await dialog.getByLabel('Key for the credentials').fill(recipient);
    await dialog.getByText('More settings').click();
    await dialog.getByLabel('Memory in MiB').fill('2048');
    await dialog.getByRole('button', { name: 'Start session' }).click();
    await page.waitForURL(/\?session=/);
    const id = sessionOf(page);
    await page.locator('.sign-in .steps').waitFor();
    await picture(page, `${title} begun`);
    await page.locator('.sign-in[data-step="sign_in"]').waitFor({ timeout: START_MS });
    for (const step of ['Machine', 'Tool', 'Link']) {
      const row = page.locator('.steps li.done', { hasText: step });
      // The state and the events that tell the times come one after the other.
      await row.locator('.time', { hasText: /\d+(\.\d)? (s|min)/ }).waitFor();
    }
    await desktopIsLive(page);
    return id;
  }

  /** Waits until the machine shows a page of this colour. */
  async function sees(name, colour) {
    await until(
      () =>
        page.locator('.target canvas').evaluate((canvas, [r, g, b]) => {
          const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
          let found = 0;
          let all = 0;
          for (let i = 0; i < data.length; i += 4 * 97) {
            all += 1;
            // A compressed picture is not exact.
            const off = [r - data[i], g - data[i + 1], b - data[i + 2]];
            if (off.every((d) => Math.abs(d) < 12)) found += 1;
          }
          return found / all > 0.2;
        }, colour),
      name,
      PAGE_MS,
    );
    await picture(page, name);
  }

  /** Gives the keyboard to the machine and types; its pages put the focus where it is needed. */
  async function type(...keys) {
    await page.locator('.stage').focus();
    await page.keyboard.press('Enter');
    await until(
      () => page.evaluate(() => !!document.activeElement?.matches('.target canvas')),
      'the focus on the desktop',
    );
    for (const key of keys) {
      if (key.length > 1 && /^[A-Z][a-z]/.test(key)) await page.keyboard.press(key);
      else await page.keyboard.type(key, { delay: 60 });
    }
  }

  async function consent() {
    await sees('the page that asks who it is', LOGIN);
    await type('ada', 'Tab', 'lovelace', 'Enter');
    await sees('the page that asks for consent', CONSENT);
    await type('Enter');
  }

  /** After the tool's end: the machine is gone, and what it left is for its owner alone, once. */
  async function ended(id) {
    await page.locator('.sign-in[data-outcome="succeeded"]').waitFor({ timeout: PAGE_MS });
    await page
      .getByRole('heading', { name: 'This session has ended' })
      .waitFor({ timeout: 60_000 });
    await picture(page, 'the hand-over');
    const other = await call('POST', '/api/tokens', { owner: `mallory ${id}` });
    const stolen = await fetch(`${url}/api/sessions/${id}/credentials`, {
      method: 'POST',
      headers: { authorization: `Bearer ${other.body.secret}` },
    });
    assert.equal(stolen.status, 404, 'another owner');
  }

  async function handedOver(id) {
    const again = await fetch(`${url}/api/sessions/${id}/credentials`, {
      method: 'POST',
      headers: { authorization: `Bearer ${token}` },
    });
    assert.equal(again.status, 410, 'a second time');
    await page.reload();
    await page.getByText('They can be fetched only once').waitFor();
  }

  async function download(button, name) {
    const waited = page.waitForEvent('download');
    await button.click();
    const path = join(files, name);
    await (await waited).saveAs(path);
    return readFile(path);
  }

  /** Gets and opens them in the page, whose key they are sealed to. */
  async function takeHere(id, name) {
    await page.getByRole('button', { name: 'Get the credentials' }).click();
    const save = page.getByRole('button', { name: 'Download' });
    await save.waitFor();
    await picture(page, 'the credentials');
    const auth = JSON.parse(await download(save, name));
    assert.ok(auth.access_token.length > 20, 'no access token');
    await handedOver(id);
  }

  it('with a loopback callback', async () => {
    const id = await begin('Tool with loopback');
    const shown = await page.locator('.sign-in .url').textContent();
    const answer = await call('GET', `/api/sessions/${id}/oauth-url`);
    assert.deepEqual([answer.status, answer.body.url], [200, shown]);
    assert.match(shown, /code_challenge=[\w-]{43}&code_challenge_method=S256$/);
    await consent();
    await ended(id);
    await takeHere(id, 'loopback.json');
  });

  it('with a code that is pasted, for a key of one’s own', async () => {
    const identity = await generateX25519Identity();
    const id = await begin('Tool with paste', await identityToRecipient(identity));
    await consent();
    await sees('the page with the code', CODE);
    // Copied in the machine, pasted into the page.
    const field = page.getByLabel('Code from the provider');
    assert.equal(await field.isVisible(), true);
    await type('Control+a', 'Control+c');
    await page.getByRole('button', { name: 'Clipboard' }).click();
    const clipboard = page.getByLabel('Clipboard of the machine');
    const code = await until(async () => (await clipboard.inputValue()).trim(), 'the copied code');
    await page.keyboard.press('Escape');
    await field.fill(code);
    await picture(page, 'the code is pasted');
    await page.getByRole('button', { name: 'Hand it to the tool' }).click();
    await ended(id);

    const sealed = await download(page.getByRole('button', { name: 'Save the age file' }), 'p.age');
    const open = async (key) => {
      const decrypter = new Decrypter();
      decrypter.addIdentity(key);
      return JSON.parse(await decrypter.decrypt(sealed, 'text'));
    };
    await assert.rejects(open(await generateX25519Identity()), 'anybody’s key opens it');
    const [file] = (await open(identity)).files;
    assert.deepEqual([file.path, file.mode], ['.tool/auth.json', 0o600]);
    const content = Buffer.from(file.content, 'base64');
    assert.ok(JSON.parse(content).access_token.length > 20, 'no access token');
    await writeFile(join(files, 'paste.json'), content);
    await handedOver(id);
  });

  it('with the code of a device', async () => {
    const id = await begin('Tool with device');
    const large = page.locator('.sign-in .large');
    await large.waitFor();
    const code = await large.textContent();
    const size = await large.evaluate((e) => parseFloat(getComputedStyle(e).fontSize));
    assert.ok(size >= 24, `the code is ${size} px high`);
    await page.getByRole('button', { name: 'Copy code' }).waitFor();
    await sees('the page that asks for the code', USER_CODE);
    await type(code.replace('-', ''), 'Enter');
    await sees('the page that repeats the code', CONFIRM);
    await type('Enter');
    await consent();
    await ended(id);
    await takeHere(id, 'device.json');
  });

  it('had no uncaught error', () => {
    assert.deepEqual(browser.errors, []);
  });
});

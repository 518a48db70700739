/** What happens to an open desktop when the way to the server breaks. */

import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import {
  START_MS,
  cleanUp,
  desktopIsLive,
  newSession,
  openBrowser,
  openWire,
  sessionOf,
  signIn,
} from './harness.js';

/** A heartbeat every 10 s that may take 8 s: by then a frozen connection is found out. */
const FOUND_OUT_MS = 30_000;

describe('a broken network', { timeout: 3 * START_MS }, () => {
  let browser;
  let page;
  let wire;
  let loads = 0;

  before(async () => {
    wire = await openWire();
    browser = await openBrowser();
    page = browser.page;
    await signIn(page, wire.url);
    await newSession(page, `e2e network ${process.pid}`);
    await desktopIsLive(page);
    page.on('load', () => (loads += 1));
  });

  after(async () => {
    await browser?.close();
    await wire?.close();
    await cleanUp();
  });

  const notice = () => page.locator('.stage [data-cause]');

  async function lost(timeout) {
    await notice().waitFor(timeout && { timeout });
    await page.locator('.snapshot[data-frozen="true"]').waitFor();
    assert.equal(await page.getByRole('button', { name: 'Reconnect now' }).isVisible(), true);
  }

  async function back() {
    await desktopIsLive(page, 30_000);
    await notice().waitFor({ state: 'detached' });
    assert.equal(loads, 0, 'the page was not loaded again');
  }

  it('keeps the last picture, counts down and comes back by itself', async () => {
    wire.set('cut');
    await lost();
    await page.getByText(/Next attempt in \d+ s/).waitFor();
    wire.set('good');
    await back();
  });

  it('comes back at once when a person asks for it', async () => {
    wire.set('cut');
    await lost();
    // Long enough for the pause between attempts to have grown.
    await page.getByText(/Next attempt in [4-9] s/).waitFor({ timeout: 60_000 });
    wire.set('good');
    const asked = Date.now();
    await page.getByRole('button', { name: 'Reconnect now' }).click();
    await back();
    assert.ok(Date.now() - asked < 3_500, `it took ${Date.now() - asked} ms`);
  });

  it('comes back at once when the browser is online again', async () => {
    await browser.context.setOffline(true);
    wire.set('cut');
    await lost();
    await page.getByText('You are offline').waitFor();
    await page.getByText(/Next attempt in [4-9] s/).waitFor({ timeout: 60_000 });
    wire.set('good');
    const asked = Date.now();
    await browser.context.setOffline(false);
    await back();
    assert.ok(Date.now() - asked < 3_500, `it took ${Date.now() - asked} ms`);
  });

  it('notices a connection on which nothing arrives any more', async () => {
    wire.set('frozen');
    await lost(FOUND_OUT_MS);
    wire.set('good');
    await back();
    assert.ok(sessionOf(page));
  });

  it('had no uncaught error', () => {
    assert.deepEqual(browser.errors, []);
  });
});

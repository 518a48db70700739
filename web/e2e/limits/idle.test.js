/**
 * What a page says before its session is idle for too long. Needs a server whose idle limit is a
 * minute; the machines may be simulated.
 */

import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import {
  START_MS,
  call,
  cleanUp,
  desktopIsLive,
  newSession,
  openBrowser,
  picture,
  signIn,
} from '../harness.js';

/** The second half of the minute, a heartbeat, and its answer. */
const WARNED_MS = 45_000;

describe('a session that nobody uses', { timeout: 2 * START_MS }, () => {
  let browser;

  before(async () => {
    browser = await openBrowser();
  });

  after(async () => {
    await browser?.close();
    await cleanUp();
  });

  /** A new session in a page of its own, at whose end it is asked to be kept. */
  async function keptBy(name, act) {
    const page = await browser.context.newPage();
    await signIn(page);
    const id = await newSession(page, `e2e ${name} ${process.pid}`);
    await desktopIsLive(page);
    const idleAt = async () => Date.parse((await call('GET', `/api/sessions/${id}`)).body.idleAt);
    const bar = page.locator('.bar.idle');
    assert.equal(await bar.count(), 0, 'warned at once');
    await bar
      .getByText(/Nobody is using this session: .* in \d+ s/)
      .waitFor({ timeout: WARNED_MS });
    await picture(page, `idle ${name}`);
    const before = await idleAt();
    await act(page);
    await bar.waitFor({ state: 'detached' });
    assert.ok((await idleAt()) > before + 20_000, 'its time did not start afresh');
    assert.equal(await page.locator('.stage[data-live="true"]').count(), 1);
  }

  it('warns on its page, and is kept by a key or by its button', async () => {
    await Promise.all([
      keptBy('key', async (page) => {
        await page.locator('.stage').focus();
        await page.keyboard.press('Enter');
        await page.keyboard.press('x');
      }),
      keptBy('button', (page) => page.getByRole('button', { name: 'Keep it' }).click()),
    ]);
  });

  it('had no uncaught error', () => {
    assert.deepEqual(browser.errors, []);
  });
});

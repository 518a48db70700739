/** The whole way without a mouse. */

import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import {
  START_MS,
  cleanUp,
  desktopIsLive,
  openBrowser,
  sessionOf,
  signIn,
  until,
} from './harness.js';

describe('the keyboard alone', { timeout: 2 * START_MS }, () => {
  let browser;
  let page;

  before(async () => {
    browser = await openBrowser();
    page = browser.page;
    await signIn(page);
  });

  after(async () => {
    await browser?.close();
    await cleanUp();
  });

  const focused = (selector) =>
    page.evaluate((s) => !!document.activeElement?.matches(s), selector);

  /** Presses Tab until something has the focus. */
  async function tabTo(selector, most = 40) {
    for (let i = 0; i < most; i++) {
      if (await focused(selector)) return;
      await page.keyboard.press('Tab');
    }
    assert.fail(`Tab never came to ${selector}`);
  }

  it('makes a session', async () => {
    await tabTo('button.primary');
    await page.keyboard.press('Enter');
    await page.getByRole('dialog', { name: 'New session' }).waitFor();
    await tabTo('#name');
    await page.keyboard.type(`e2e keyboard ${process.pid}`);
    await page.keyboard.press('Enter');
    await page.waitForURL(/\?session=/);
    assert.ok(sessionOf(page));
    await desktopIsLive(page);
  });

  it('enters the desktop and leaves it', async () => {
    await tabTo('.stage');
    await page.keyboard.press('Enter');
    await until(() => focused('.target canvas'), 'the focus on the desktop');
    await page.keyboard.press('Tab');
    assert.equal(await focused('.target canvas'), true, 'Tab goes to the machine');
    await page.keyboard.press('Escape');
    assert.equal(await focused('.target canvas'), true, 'Escape goes to the machine');
    for (const key of ['Control', 'Alt', 'Shift']) await page.keyboard.down(key);
    for (const key of ['Shift', 'Alt', 'Control']) await page.keyboard.up(key);
    await until(() => focused('[data-first]'), 'the focus on the desktop’s tools');
  });

  it('opens a panel of tools and closes it with Escape', async () => {
    await tabTo('[aria-label="Special keys"]');
    await page.keyboard.press('Enter');
    await page.getByRole('button', { name: 'Ctrl + Alt + Del' }).waitFor();
    await page.keyboard.press('Tab');
    await page.keyboard.press('Escape');
    await page.getByRole('button', { name: 'Ctrl + Alt + Del' }).waitFor({ state: 'detached' });
    assert.equal(await focused('[aria-label="Special keys"]'), true, 'the focus comes back');
  });

  it('moves between views with the arrow keys', async () => {
    await page.locator('[role="tab"][aria-selected="true"]').focus();
    await page.keyboard.press('ArrowRight');
    await page.locator('.terminal[data-ready="true"]').waitFor();
    assert.equal(await focused('#tab-terminal'), true, 'the terminal does not take the focus');
    await page.keyboard.press('ArrowRight');
    assert.equal(await focused('#tab-timeline'), true);
    await page.getByRole('region', { name: 'Timeline' }).waitFor();
    await page.keyboard.press('Home');
    assert.equal(await focused('#tab-desktop'), true);
  });

  it('ends the session', async () => {
    await tabTo('[aria-label="End session"]');
    await page.keyboard.press('Enter');
    const dialog = page.getByRole('dialog');
    await dialog.waitFor();
    await until(() => focused('dialog button'), 'the focus in the dialog');
    await tabTo('dialog button.danger');
    await page.keyboard.press('Enter');
    await page.getByRole('heading', { name: 'This session has ended' }).waitFor();
  });
});

// Starts the program; at its first start, installs the packages that it needs.

import { execSync } from "node:child_process";
import { existsSync } from "node:fs";

// What npm writes last: an installation that was cut short is begun again.
const installed = new URL("node_modules/.package-lock.json", import.meta.url);
if (!existsSync(installed)) {
  execSync("npm install --no-package-lock --no-fund --no-audit", {
    cwd: new URL(".", import.meta.url),
    stdio: "inherit",
  });
}
await import("./main.mjs");

// Requests to the server, and the line that tells what happens.

export async function ask(path, body, raw = false) {
  let answer;
  try {
    answer = await fetch(path, body === undefined ? {} : { method: "POST", body: raw ? body : JSON.stringify(body) });
  } catch { throw new Error("clipkit browse does not answer; start clipkit browse again"); }
  if (!answer.ok) {
    const text = await answer.text();
    let error = text;
    try { error = JSON.parse(text).error; } catch { /* not JSON */ }
    throw new Error(error);
  }
  return answer;
}

export function say(text, wrong = false) {
  document.getElementById("status").textContent = text;
  document.getElementById("status").classList.toggle("wrong", wrong);
}

// Asks until a computation has ended; returns null as soon as the page shows something else.
export async function finished(question, isShown, working, tell = say) {
  for (;;) {
    const found = await question();
    if (!isShown()) return null;
    if (found.working === undefined) return found;
    tell(working(found));
    await new Promise((done) => setTimeout(done, 300));
    if (!isShown()) return null;
  }
}

// What the mock's personas say. No model runs: words are looked up, and come at a pace that a person can follow.

/** The pieces that a reply is sent in: about what a tokenizer makes of it. */
export function pieces(text) {
    return text.match(/\s*[^\s]{1,7}|\s+$/g) ?? [];
}

export const PERSONAS = [
    {
        name: "Ada",
        system: "You are Ada, an astronomer. You say what you see before you say what it means, and you are never vague.",
        adapters: [],
        thinking: true,
        priority: "interactive",
    },
    {
        name: "Ben",
        system: "You are Ben, who spent twenty years at sea and tells everything as if it had happened there.",
        adapters: [{ name: "pirate", scale: 1 }],
        thinking: false,
        priority: "interactive",
    },
    {
        name: "Clara",
        system: "You are Clara, a butler of the old school: courteous, brief, and a little amused.",
        adapters: [{ name: "butler", scale: 0.8 }],
        thinking: false,
        priority: "realtime",
    },
];

export const ADAPTERS = [
    { name: "butler", resident: true, pinned: false, bytes: 1_310_720, rank: 8, activated: false },
    { name: "cartographer", resident: false, pinned: false, bytes: 2_621_440, rank: 16, activated: true },
    { name: "pirate", resident: true, pinned: true, bytes: 1_310_720, rank: 8, activated: false },
];

const ABOUT_PICTURE = {
    Ada: {
        reasoning:
            "There are three shapes. The star is above the others and yellow; the circle stands at the left, the square at the right. " +
            "The question is what I see, so I describe positions first and leave the guess for the end.",
        text:
            "Three shapes on a dark ground:\n\n1. a **yellow star**, above the middle,\n2. a **red circle**, below it at the left,\n" +
            "3. a **blue square**, below it at the right.\n\nTheir centres form a triangle that is nearly equilateral. " +
            "If it is a sky, the star is the only thing in it that shines by itself.",
    },
    Ben: {
        text:
            "Arr, a fine sight! There be a **yellow star** overhead, the kind ye steer by, a *red sun* going down to larboard, " +
            "and to starboard a blue square, which I take for a sail that the sailmaker cut after too much rum.\n\n" +
            "> Steer by the star, keep the red one at yer left, and ye’ll be home by Thursday.",
    },
    Clara: {
        text:
            "Certainly, sir. A yellow star, at the top, where stars are customarily kept. A red circle on the left and a blue square on the right, " +
            "placed with some care, I should say.\n\nShall I have it framed?",
    },
};

const ABOUT_TABLE = {
    Ada: {
        reasoning: "A small table is clearer than a sentence here.",
        text: "| shape | colour | place |\n|---|---|---|\n| star | yellow | top |\n| circle | red | left |\n| square | blue | right |\n\nThat is all of them.",
    },
    Ben: { text: "Arr, I keep no lists, matey. What I cannot remember was not worth the voyage." },
    Clara: { text: "- the star, yellow\n- the circle, red\n- the square, blue\n\nAlphabetical order on request, sir." },
};

const ABOUT_CODE = {
    Ada: {
        reasoning: "They want code. A short function will do.",
        text:
            "```python\ndef area(radius: float) -> float:\n    return 3.141592653589793 * radius ** 2\n```\n\n`area(2)` is about 12.57. " +
            "See https://docs.python.org/3/library/math.html for `math.pi`.",
    },
    Ben: { text: "Pi times the square of the rope, says I, and the rope goes from the *middle*." },
    Clara: { text: "One multiplies, sir. I have taken the liberty of leaving that to Ada." },
};

/** Everything that a hostile model might write: none of it may become an element, a request or a script. */
export const HOSTILE =
    "<img src=x onerror=alert(1)> <script>window.hacked = true</script> [click](javascript:alert(1)) " +
    "![beacon](https://beacon.example/pixel.png) <b>not bold</b> [fine](https://example.org/a) `<i>code</i>`";

export function reply(persona, message, hasPicture) {
    const asked = message.toLowerCase();
    const of = (table) => table[persona];
    if (asked.includes("hostile")) return { text: HOSTILE };
    if (asked.includes("long")) {
        const line = `${persona} goes on, and the sentence after this one is much the same. `;
        return { text: Array.from({ length: 12 }, (_, at) => `Part ${at + 1}. ${line.repeat(6).trim()}`).join("\n\n") };
    }
    if (asked.includes("code") && of(ABOUT_CODE)) return of(ABOUT_CODE);
    if ((asked.includes("table") || asked.includes("list")) && of(ABOUT_TABLE)) return of(ABOUT_TABLE);
    if ((hasPicture || asked.includes("see")) && of(ABOUT_PICTURE)) return of(ABOUT_PICTURE);
    if (persona === "Ada")
        return {
            reasoning: "A short answer is enough.",
            text: "That depends on where one stands. From here it is **so**.",
        };
    if (persona === "Ben") return { text: "Arr, so it be, matey." };
    if (persona === "Clara") return { text: "Quite so, sir." };
    return { text: `${persona} heard: ${message || "a picture"}.` };
}

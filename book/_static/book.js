// MathJax knows \textcolor{#B5478F}{x}; LaTeX's own spelling, \textcolor[HTML]{B5478F}{x}, works too.
window.MathJax = window.MathJax || {};
window.MathJax.startup = {
  ready() {
    const model = MathJax._.input.tex.color.ColorUtil.ColorModel.prototype;
    const normalize = model.normalizeColor;
    model.normalizeColor = function (kind, colour) {
      return kind === "HTML" ? "#" + colour : normalize.call(this, kind, colour);
    };
    MathJax.startup.defaultReady();
  },
};

// The search shows excerpts of the pages it finds; a page opened as a file may not fetch them.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

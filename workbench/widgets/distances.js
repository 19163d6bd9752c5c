// The formulas of workbench/core/distances.py; the names are the same.
// moments: [d.d, d.delta, delta.delta, d^2.delta^2, d.delta^3, delta^4] of one tensor.
function distance(moments, p, a, b, c) {
  const [dd, de, ee, ddee, deee, eeee] = moments;
  const q = 1 - p;
  const square = a * a * dd + 2 * a * (b + c) * de + (b * b + 2 * b * c + (c * c) / q) * ee;
  const u = (2 * a * c) / q;
  const v = (c / q) * (2 * b + c / q);
  const variance = p * q * (u * u * ddee + 2 * u * v * deee + v * v * eeee);
  const mean = Math.sqrt(Math.max(square, 0));
  return [mean, mean > 0 ? Math.sqrt(Math.max(variance, 0)) / (2 * mean) : 0];
}

function fromBase(moments, alpha, p, towards) {
  return distance(moments, p, 1 - (towards === "base" ? alpha : 0), 0, 1 - alpha);
}

function fromSft(moments, alpha, p, towards) {
  return distance(moments, p, towards === "base" ? -alpha : 0, -1, 1 - alpha);
}

// alpha of each layer, as workbench/core/profiles.py has it.
function layerAlphas(merge, pair) {
  const change = pair.change;
  const layers = change.length;
  if (merge.profile === "points") {
    const points = merge.points;
    return change.map((_, n) => {
      const at = layers > 1 ? (n / (layers - 1)) * (points.length - 1) : 0;
      const left = Math.min(Math.floor(at), points.length - 2);
      return points.length === 1 ? points[0] : points[left] + (at - left) * (points[left + 1] - points[left]);
    });
  }
  const byImportance = merge.profile === "importance" && pair.importance;
  if (byImportance || merge.profile === "inverse_change") {
    const weights = byImportance ? pair.importance : change.map((x) => 1 / Math.max(x, 1e-12));
    const mean = weights.reduce((x, y) => x + y, 0) / layers;
    return weights.map((weight) => Math.min(1, (merge.alpha * weight) / mean));
  }
  return change.map(() => merge.alpha);
}

// By layer, and last outside the layers: sum over tensors of the distance (Eq. 4), its spread over seeds,
// and of all tensors together the root of the summed squares.
function curves(pair, merge) {
  const alphas = layerAlphas(merge, pair);
  const kinds = { base: fromBase, sft: fromSft };
  const found = {};
  for (const [kind, formula] of Object.entries(kinds)) {
    const mean = new Array(pair.change.length + 1).fill(0);
    const variance = new Array(pair.change.length + 1).fill(0);
    let square = 0;
    pair.moments.forEach((moments, n) => {
      const layer = pair.layers[n];
      const alpha = layer === null ? merge.alpha : alphas[layer];
      const [one, spread] = formula(moments, alpha, merge.drop_rate, merge.towards);
      const place = (pair.counted ?? pair.layers)[n] ?? pair.change.length;
      mean[place] += one;
      variance[place] += spread * spread;
      square += one * one;
    });
    found[kind] = { mean, spread: variance.map(Math.sqrt), total: Math.sqrt(square) };
  }
  return { ...found, alphas };
}

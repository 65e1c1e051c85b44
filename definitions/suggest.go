package definitions

import "strings"

// nearest returns the name that was probably meant by name, or "" if none is near.
func nearest(name string, names []string) string {
	plain := strings.NewReplacer("_", "", "-", "")
	best, bestDistance := "", 0
	for _, candidate := range names {
		a, b := plain.Replace(strings.ToLower(name)), plain.Replace(strings.ToLower(candidate))
		d := distance(a, b)
		if d > max(1, len(b)/3) || best != "" && d >= bestDistance {
			continue
		}
		best, bestDistance = candidate, d
	}
	return best
}

// distance returns the optimal string alignment distance: the number of insertions, deletions, substitutions and
// swaps of neighbours that turn a into b.
func distance(a, b string) int {
	if len(a) > 64 {
		return len(a) // no name is that long
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range len(b) + 1 {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}

// At returns the service with the longest path that takes the path under some host. If none does, it returns nil.
func (g *Gateway) At(path string) *Service {
	var best *Service
	for _, s := range g.Services {
		if within(path, s.Path) && (best == nil || len(s.Path) > len(best.Path)) {
			best = s
		}
	}
	return best
}

// Nearest returns the service that was probably meant by an unknown path: its path is at most a third of its letters
// away from as many segments of the unknown one. If none is near, it returns nil.
func (g *Gateway) Nearest(path string) *Service {
	var best *Service
	bestDistance := 0
	for _, s := range g.Services {
		segments := strings.Split(path, "/")
		want := strings.ToLower(s.Path)
		begin := strings.ToLower(strings.Join(segments[:min(len(segments), strings.Count(want, "/")+1)], "/"))
		away := distance(begin, want)
		if away > max(1, (len(want)-1)/3) || best != nil && away >= bestDistance {
			continue
		}
		best, bestDistance = s, away
	}
	return best
}

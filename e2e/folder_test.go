package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"gatepost/envoy/envoytest"
)

func TestRunFollowsAFolderOfDefinitions(t *testing.T) {
	t.Parallel()
	items := envoytest.Upstream(t)
	g := prepare(t, itemsAt(items), setup{})
	g.args = append(g.args, "--config", filepath.Dir(g.File))
	g.Run()
	g.AwaitReady()
	g.followsAFolder(items)
}

func TestServeFollowsAFolderOfDefinitions(t *testing.T) {
	t.Parallel()
	items := envoytest.Upstream(t)
	g := prepareServed(t, itemsAt(items), setup{}, overSockets)
	g.args = append(g.args, "--config", filepath.Dir(g.File))
	g.Run()
	g.StartEnvoy(envoytest.Options{})
	g.AwaitReady()
	g.followsAFolder(items)
}

func itemsAt(items *envoytest.Recorder) string {
	return `services: [{name: items, path: /items, authenticate: false, upstreams: ["` + items.URL() + `"]}]` + "\n"
}

// followsAFolder adds a second file to the folder of the definitions, breaks it and mends it.
func (g *gateway) followsAFolder(items *envoytest.Recorder) {
	g.t.Helper()
	team := filepath.Join(filepath.Dir(g.File), "team.yaml")
	write := func(name, path string) {
		g.t.Helper()
		text := "services:\n  - name: " + name + "\n    path: " + path + "\n    authenticate: false\n    upstreams: [\"" + items.URL() + "\"]\n"
		if err := os.WriteFile(team+"~", []byte(text), 0o644); err != nil {
			g.t.Fatal(err)
		}
		if err := os.Rename(team+"~", team); err != nil {
			g.t.Fatal(err)
		}
	}
	write("later", "/later")
	g.Await("the service of the second file", http.StatusOK, "GET", "/later", "")
	write("items", "/other")
	envoytest.Eventually(g.t, "the mistake to be reported", func() bool {
		return len(lines(g.Log(), team+`:2:11: services[0].name: \"items\" is also the name of the service on line 2 of `+g.File)) == 1
	})
	want(g.t, "the service that the broken file had", g.Do("GET", "/later", ""), http.StatusOK, "")
	write("last", "/last")
	g.Await("the service of the mended file", http.StatusOK, "GET", "/last", "")
	want(g.t, "the service of the first file", g.Do("GET", "/items", ""), http.StatusOK, "")
}

package e2e

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"gatepost/envoy/envoytest"
	"gatepost/testlog"
	"gatepost/tokens/redistest"
)

// TestSessionsOfTheDocumentation runs the console blocks of each page in docs as one session and
// compares the output. The page defines what runs:
//
//   - A yaml block whose first line is a comment with a name, such as "# gatepost.yaml", is a file
//     with that name. If there is none, gatepost.yaml is the file of the demo.
//   - The gateway is the page's shell block that begins with `gatepost run`, or else
//     `gatepost run --config gatepost.yaml`.
//   - The shop of the demo runs, and a Redis if the page mentions one.
//
// Ports are replaced by free ones. In an output … stands for any text.
func TestSessionsOfTheDocumentation(t *testing.T) {
	t.Parallel()
	sessions := 0
	for _, pattern := range []string{"../docs/*.md", "../docs/*/*.md"} {
		pages, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, page := range pages {
			text, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(text), "```console\n") {
				continue
			}
			sessions++
			t.Run(strings.TrimPrefix(page, "../docs/"), func(t *testing.T) { runPage(t, string(text)) })
		}
	}
	if sessions < 4 {
		t.Errorf("only %d pages with a session were found", sessions)
	}
}

var (
	codeBlock = regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$")
	fileName  = regexp.MustCompile(`\A# (\S+\.yaml)\n`)
	runLine   = regexp.MustCompile("(?m)^gatepost (run .*)$")
)

func runPage(t *testing.T, text string) {
	dir := t.TempDir()
	ports := freePorts(t)
	if strings.Contains(text, "redis://localhost:6379") {
		server := redistest.Start(t)
		ports["6379"] = server.Port()
	}
	here, back := replacers(ports)

	demo, err := os.ReadFile("../examples/demo/local/gatepost.yaml")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"gatepost.yaml": string(demo), "examples/demo/local/gatepost.yaml": string(demo)}
	arguments := "run --config gatepost.yaml"
	var steps []step
	for _, m := range codeBlock.FindAllStringSubmatch(text, -1) {
		switch language, body := m[1], m[2]; language {
		case "yaml":
			if name := fileName.FindStringSubmatch(body); name != nil {
				files[name[1]] = body
			}
		case "sh":
			if run := runLine.FindStringSubmatch(body); run != nil {
				arguments = run[1]
			}
		case "console":
			steps = append(steps, readSteps(here.Replace(body))...)
		}
	}
	for name, body := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(here.Replace(body)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if !strings.Contains(files["gatepost.yaml"]+arguments, "listen") {
		arguments += " --listen 127.0.0.1:5500" // the default is 0.0.0.0:5500, which another program may use
	}
	startDemoShop(t, ports)
	g := &gateway{t: t, Admin: "127.0.0.1:" + ports["18002"], log: new(testlog.Buffer), dir: dir}
	g.args = append(strings.Fields(here.Replace(arguments)),
		"--data", filepath.Join(dir, "data"), "--admin", g.Admin, "--envoy", envoytest.Require(t), "--log-format", "json")
	g.env = append(os.Environ(), "PATH="+filepath.Dir(binary)+":"+os.Getenv("PATH"), "GATEPOST_ADMIN="+g.Admin)
	t.Cleanup(func() {
		g.Stop()
		if t.Failed() {
			t.Logf("the log of gatepost:\n%s", g.log.Tail(10_000))
		}
	})
	g.Run()
	awaitSession(t, g, !strings.Contains(arguments, "--config redis"))

	shell := exec.Command("bash", "-c", script(steps))
	shell.Dir, shell.Env = dir, g.env
	var out, problems bytes.Buffer
	shell.Stdout, shell.Stderr = &out, &problems
	_ = shell.Run() // a command may fail, as the page shows
	answers := strings.Split(back.Replace(out.String()), "\n"+marker+"\n")
	if len(answers) <= len(steps)-1 {
		t.Fatalf("only %d of %d commands were run: %s", len(answers), len(steps), problems.String())
	}
	for i, s := range steps {
		compare(t, s, answers[i])
	}
	if t.Failed() {
		t.Logf("standard error: %s", problems.String())
	}
}

// awaitSession waits until the gateway is ready, or until it waits for its first definitions.
func awaitSession(t *testing.T, g *gateway, ready bool) {
	t.Helper()
	if ready {
		g.AwaitReady()
		return
	}
	envoytest.Eventually(t, "the gateway to wait for definitions", func() bool {
		answer, err := http.Get("http://" + g.Admin + "/readyz")
		if err != nil {
			return false
		}
		defer answer.Body.Close()
		return g.Metric("gatepost_xds_connected_envoys") == 1
	})
}

// freePorts returns a free port for each port in the documentation.
func freePorts(t *testing.T) map[string]string {
	t.Helper()
	ports := map[string]string{}
	for _, port := range []string{"5500", "8081", "8082", "8083", "18002"} {
		_, ports[port], _ = strings.Cut(envoytest.Addr(t), ":")
	}
	return ports
}

// replacers replace the ports of the documentation by free ones, and back.
func replacers(ports map[string]string) (here, back *strings.Replacer) {
	var there, again []string
	for port, free := range ports {
		there, again = append(there, ":"+port, ":"+free), append(again, ":"+free, ":"+port)
	}
	return strings.NewReplacer(there...), strings.NewReplacer(again...)
}

// shopBinary builds the shop once for all pages.
var shopBinary = sync.OnceValues(func() (string, error) {
	path := filepath.Join(filepath.Dir(binary), "shop")
	return path, build(path, "gatepost/examples/demo/shop")
})

func startDemoShop(t *testing.T, ports map[string]string) {
	t.Helper()
	path, err := shopBinary()
	if err != nil {
		t.Fatalf("building the shop: %v", err)
	}
	shop := exec.Command(path, "-users=127.0.0.1:"+ports["8081"], "-orders=127.0.0.1:"+ports["8082"], "-items=127.0.0.1:"+ports["8083"])
	if err := shop.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = shop.Process.Kill()
		_ = shop.Wait()
	})
	for _, port := range []string{"8081", "8082", "8083"} {
		envoytest.Eventually(t, "the shop", func() bool { return envoytest.Accepts("127.0.0.1:" + ports[port]) })
	}
}

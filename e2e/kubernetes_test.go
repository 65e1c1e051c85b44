package e2e

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"gatepost/envoy/envoytest"
	"gatepost/tokens/redistest"
)

type container struct {
	Name string
	Args []string
}

// manifest is the part of a Kubernetes object that a pod runs with.
type manifest struct {
	Metadata struct{ Name string }
	Data     map[string]string
	Spec     struct {
		Template struct {
			Spec struct {
				InitContainers []container `yaml:"initContainers"`
				Containers     []container
			}
		}
	}
}

// The pod of examples/kubernetes works: with the arguments and the ConfigMaps of the manifests, Gatepost and Envoy get
// ready and answer requests. Only paths and ports are those of this machine.
func TestThePodOfTheKubernetesExample(t *testing.T) {
	redis := redistest.Start(t)
	g := prepare(t, "services: []", setup{Env: []string{"GATEPOST_REDIS=redis://" + redis.Addr}})
	run, err := os.MkdirTemp("", "gatepost-pod-") // t.TempDir is too long for a socket path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	definitions, bootstrap := t.TempDir(), t.TempDir()
	here := strings.NewReplacer("/run/gatepost", run, "/etc/gatepost/definitions", definitions, "/var/lib/gatepost", g.Data,
		"/etc/envoy", bootstrap, "0.0.0.0:5500", g.Addr)

	arguments := map[string][]string{}
	for _, object := range manifests(t) {
		pod := object.Spec.Template.Spec
		for _, container := range append(pod.InitContainers, pod.Containers...) {
			for _, argument := range container.Args {
				arguments[container.Name] = append(arguments[container.Name], here.Replace(argument))
			}
		}
	}
	for _, object := range manifests(t) {
		switch object.Metadata.Name {
		case "gatepost-definitions":
			mountConfigMap(t, definitions, object.Data, here)
		case "gatepost-envoy":
			mountConfigMap(t, bootstrap, object.Data, here)
		}
	}

	g.args = append(arguments["gatepost"], "--admin", g.Admin, "--log-format", "json")
	g.Run()
	envoy := exec.Command(envoytest.Require(t), append(arguments["envoy"], "--use-dynamic-base-id")...)
	var log bytes.Buffer
	envoy.Stdout, envoy.Stderr = &log, &log
	if err := envoy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = envoy.Process.Kill()
		_ = envoy.Wait()
		if t.Failed() {
			t.Logf("Envoy's log:\n%s", &log)
		}
	})
	g.AwaitReady()
	if answer := g.Do("GET", "/orders", ""); answer.Status != http.StatusUnauthorized {
		t.Errorf("a secured service without a token: %d %s", answer.Status, answer.Body)
	}
	if answer := g.Do("GET", "/nothing", ""); answer.Status != http.StatusNotFound {
		t.Errorf("an unknown path: %d %s", answer.Status, answer.Body)
	}
	if _, code := gatepost(t, []string{"GATEPOST_ADMIN=" + g.Admin}, "health"); code != 0 {
		t.Errorf("the readiness probe exits %d", code)
	}
	if said, _ := gatepost(t, []string{"GATEPOST_ADMIN=" + g.Admin}, "status"); !strings.Contains(said, "upstreams are healthy") {
		t.Errorf("Gatepost cannot ask the admin interface of Envoy:\n%s", said)
	}
}

// manifests reads all objects of examples/kubernetes.
func manifests(t *testing.T) (all []manifest) {
	t.Helper()
	files, err := filepath.Glob("../examples/kubernetes/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		decoder := yaml.NewDecoder(bytes.NewReader(text))
		for {
			var m manifest
			err := decoder.Decode(&m)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			all = append(all, m)
		}
	}
	return all
}

// mountConfigMap writes files as Kubernetes mounts them: links to a folder that a change replaces.
func mountConfigMap(t *testing.T, folder string, data map[string]string, here *strings.Replacer) {
	t.Helper()
	version := filepath.Join(folder, "..2026_11_29_02_00_00.1")
	err := errors.Join(os.Mkdir(version, 0o755), os.Symlink(filepath.Base(version), filepath.Join(folder, "..data")))
	for name, text := range data {
		err = errors.Join(err,
			os.WriteFile(filepath.Join(version, name), []byte(here.Replace(text)), 0o644),
			os.Symlink(filepath.Join("..data", name), filepath.Join(folder, name)))
	}
	if err != nil {
		t.Fatal(err)
	}
}

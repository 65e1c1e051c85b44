// Package kubernetes_test holds the manifests of this folder to the API of Kubernetes and to the commands of Gatepost.
// It is a module of its own, so that the API is no dependency of the product. A real Envoy and a real Gatepost with the
// arguments of the manifests are tested in e2e.
package kubernetes_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"
)

// manifests are the objects of all files.
type manifests struct {
	deployment appsv1.Deployment
	service    corev1.Service
	configMaps map[string]corev1.ConfigMap
}

// read decodes every document strictly: a field that the API does not have, or that is given twice, is an error.
func read(t *testing.T) manifests {
	t.Helper()
	files, err := filepath.Glob("*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no manifests: %v", err)
	}
	m := manifests{configMaps: map[string]corev1.ConfigMap{}}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for document := range strings.SplitSeq(string(text), "\n---\n") {
			if err := m.add([]byte(document)); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
	return m
}

func (m *manifests) add(document []byte) error {
	var kind struct{ APIVersion, Kind string }
	if err := yaml.Unmarshal(document, &kind); err != nil {
		return err
	}
	switch kind.APIVersion + " " + kind.Kind {
	case "apps/v1 Deployment":
		return yaml.UnmarshalStrict(document, &m.deployment)
	case "v1 Service":
		return yaml.UnmarshalStrict(document, &m.service)
	case "v1 ConfigMap":
		var c corev1.ConfigMap
		err := yaml.UnmarshalStrict(document, &c)
		m.configMaps[c.Name] = c
		return err
	}
	return fmt.Errorf("the test does not know %s %s", kind.APIVersion, kind.Kind)
}

func TestFieldsThatTheAPIDoesNotHaveAreFound(t *testing.T) {
	for _, document := range []string{
		"apiVersion: apps/v1\nkind: Deployment\nspec: {replica: 2}",
		"apiVersion: v1\nkind: Service\nspec: {type: ClusterIP, type: NodePort}",
		"apiVersion: v1\nkind: Services",
	} {
		if err := new(manifests).add([]byte(document)); err == nil {
			t.Errorf("accepted:\n%s", document)
		}
	}
}

func (m *manifests) containers() []corev1.Container {
	pod := m.deployment.Spec.Template.Spec
	return slices.Concat(pod.InitContainers, pod.Containers)
}

func (m *manifests) container(t *testing.T, name string) corev1.Container {
	t.Helper()
	i := slices.IndexFunc(m.containers(), func(c corev1.Container) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("no container %s", name)
	}
	return m.containers()[i]
}

// The API server compares these only when the objects are created.
func TestReferencesOfTheManifestsResolve(t *testing.T) {
	m := read(t)
	pod := m.deployment.Spec.Template
	for key, value := range m.deployment.Spec.Selector.MatchLabels {
		if pod.Labels[key] != value {
			t.Errorf("the deployment does not select its own pods: %s is %q", key, pod.Labels[key])
		}
	}
	for key, value := range m.service.Spec.Selector {
		if pod.Labels[key] != value {
			t.Errorf("the service does not select the pods: %s is %q", key, pod.Labels[key])
		}
	}
	volumes := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = true
		if v.ConfigMap != nil && len(m.configMaps[v.ConfigMap.Name].Data) == 0 {
			t.Errorf("the volume %s needs the ConfigMap %s, which does not exist", v.Name, v.ConfigMap.Name)
		}
	}
	ports := map[string]bool{}
	for _, c := range m.containers() {
		for _, mount := range c.VolumeMounts {
			if !volumes[mount.Name] {
				t.Errorf("%s mounts %s, which does not exist", c.Name, mount.Name)
			}
		}
		for _, p := range c.Ports {
			ports[p.Name] = true
		}
		for _, probe := range []*corev1.Probe{c.ReadinessProbe, c.LivenessProbe, c.StartupProbe} {
			if probe != nil && probe.TCPSocket != nil && !slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == probe.TCPSocket.Port.StrVal }) {
				t.Errorf("a probe of %s calls the port %s, which it does not have", c.Name, probe.TCPSocket.Port.StrVal)
			}
		}
		if c.ReadinessProbe == nil {
			t.Errorf("%s has no readiness probe", c.Name)
		}
	}
	for _, p := range m.service.Spec.Ports {
		if p.TargetPort.Type != intstr.String || !ports[p.TargetPort.StrVal] {
			t.Errorf("the service leads to the port %s, which no container has", p.TargetPort.String())
		}
	}
	for name, c := range m.configMaps {
		for key := range c.Data {
			if problems := validation.IsConfigMapKey(key); len(problems) > 0 {
				t.Errorf("%s: the key %q: %v", name, key, problems)
			}
		}
	}
}

// Gatepost must start before Envoy and end after it, or requests that are under way cannot be decided.
func TestGatepostIsASidecarOfEnvoy(t *testing.T) {
	m := read(t)
	pod := m.deployment.Spec.Template.Spec
	if len(pod.InitContainers) != 1 || len(pod.Containers) != 1 || pod.Containers[0].Name != "envoy" {
		t.Fatalf("%d init containers, and the containers %v", len(pod.InitContainers), pod.Containers)
	}
	sidecar := m.container(t, "gatepost")
	if sidecar.RestartPolicy == nil || *sidecar.RestartPolicy != corev1.ContainerRestartPolicyAlways || sidecar.StartupProbe == nil {
		t.Error("gatepost is no sidecar with a startup probe")
	}
	for _, c := range m.containers() {
		s := c.SecurityContext
		if s == nil || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
			t.Errorf("%s is not restricted", c.Name)
		}
	}
}

// program is the path of gatepost, built from this source.
var program string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "gatepost-kubernetes-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "gatepost")
		if out, err := exec.Command("go", "build", "-C", "../..", "-o", program, "./cmd/gatepost").CombinedOutput(); err != nil {
			panic(fmt.Sprintf("building gatepost: %v\n%s", err, out))
		}
		return m.Run()
	}())
}

func gatepost(t *testing.T, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	return string(out), err
}

func TestGatepostKnowsItsArguments(t *testing.T) {
	m := read(t)
	c := m.container(t, "gatepost")
	commands := [][]string{c.Args}
	for _, probe := range []*corev1.Probe{c.ReadinessProbe, c.LivenessProbe, c.StartupProbe} {
		if len(probe.Exec.Command) < 2 || probe.Exec.Command[0] != "/gatepost" {
			t.Errorf("a probe runs %q, which the image does not have", probe.Exec.Command)
			continue
		}
		commands = append(commands, probe.Exec.Command[1:])
	}
	for _, args := range commands {
		// The flags are parsed before the help is printed, so an unknown flag or command is an error.
		out, err := gatepost(t, append(slices.Clone(args), "--help")...)
		if err != nil || !strings.Contains(out, "gatepost "+args[0]) {
			t.Errorf("gatepost %q: %v\n%s", args, err, out)
		}
	}
	if out, err := gatepost(t, "serve", "--no-such-flag=1", "--help"); err == nil {
		t.Errorf("the check above finds nothing: %s", out)
	}
	variables, err := os.ReadFile("../../docs/reference/environment.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, variable := range c.Env {
		if !strings.Contains(string(variables), "`"+variable.Name+"`") {
			t.Errorf("gatepost reads no variable %s", variable.Name)
		}
	}
}

// flagOf returns the value of --name=value among the arguments.
func flagOf(c corev1.Container, name string) string {
	for _, arg := range c.Args {
		if value, ok := strings.CutPrefix(arg, "--"+name+"="); ok {
			return value
		}
	}
	return ""
}

// mountOf returns the name of the volume that holds a path in a container.
func mountOf(c corev1.Container, path string) string {
	for _, mount := range c.VolumeMounts {
		if path == mount.MountPath || strings.HasPrefix(path, mount.MountPath+"/") {
			return mount.Name
		}
	}
	return ""
}

func TestDefinitionsOfTheManifestsAreValid(t *testing.T) {
	m := read(t)
	c := m.container(t, "gatepost")
	if mountOf(c, flagOf(c, "config")) != "definitions" || mountOf(c, flagOf(c, "data")) != "data" {
		t.Errorf("--config=%s and --data=%s are not on their volumes", flagOf(c, "config"), flagOf(c, "data"))
	}
	folder := t.TempDir()
	for name, text := range m.configMaps["gatepost-definitions"].Data {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out, err := gatepost(t, "validate", "--no-envoy", "--strict", folder)
	if err != nil || !strings.Contains(out, "good, 2 services") {
		t.Errorf("%v\n%s", err, out)
	}
	settings := m.configMaps["gatepost-definitions"].Data["gateway.yaml"]
	port := fmt.Sprint(m.container(t, "envoy").Ports[0].ContainerPort)
	if !strings.Contains(settings, "listen: 0.0.0.0:"+port+"\n") {
		t.Errorf("the definitions do not listen on the port %s of the pod:\n%s", port, settings)
	}
}

func TestEnvoyFindsGatepostInTheSharedVolume(t *testing.T) {
	m := read(t)
	sidecar, envoy := m.container(t, "gatepost"), m.container(t, "envoy")
	for _, flag := range []string{"grpc", "http", "envoy-admin"} {
		path, isSocket := strings.CutPrefix(flagOf(sidecar, flag), "unix:")
		if !isSocket || mountOf(sidecar, path) != "run" || mountOf(envoy, path) != "run" {
			t.Errorf("--%s=%s is not on the volume that both have", flag, path)
		}
	}
	want, err := gatepost(t, "bootstrap", "--grpc", flagOf(sidecar, "grpc"), "--http", flagOf(sidecar, "http"), "--envoy-admin", flagOf(sidecar, "envoy-admin"))
	if err != nil {
		t.Fatalf("%v\n%s", err, want)
	}
	if got := m.configMaps["gatepost-envoy"].Data["envoy.yaml"]; got != want {
		t.Errorf("envoy.yaml is not what gatepost bootstrap prints; got\n%s\nwant\n%s", got, want)
	}
	at := slices.Index(envoy.Args, "-c")
	if at < 0 || mountOf(envoy, envoy.Args[at+1]) != "envoy" || filepath.Base(envoy.Args[at+1]) != "envoy.yaml" {
		t.Errorf("Envoy reads another file: %q", envoy.Args)
	}
	_, after, _ := strings.Cut(want, `max_heap_size_bytes: "`)
	heap, err := strconv.ParseInt(after[:max(0, strings.IndexByte(after, '"'))], 10, 64)
	if limit := envoy.Resources.Limits.Memory().Value(); err != nil || limit <= heap {
		t.Errorf("the memory limit of Envoy is %d, not above the heap of %d at which it refuses requests: %v", limit, heap, err)
	}
}

package compose

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"time"

	"gatepost/envoy"
	"gatepost/envoy/envoytest"
)

// root is the project's root, relative to this folder.
const root = "../.."

// standIns builds images with the official names from this machine's programs, for machines that
// cannot pull any. Some machines have it next to the project.
const standIns = root + "/../shared/docker/stand-in-images.sh"

// composeVersion is the version of Compose that is built if none is installed: the newest that
// go.mod's Go version can build.
const composeVersion = "v5.6.0"

// projectName is the prefix of everything that Compose creates.
const projectName = "gatepost-test"

// project is a copy of this project's tree that runs on an engine under its own name and port.
type project struct {
	engine  *engine
	compose []string // the command line of Compose
	dir     string
	port    string
	tlsPort string // of the gateway with HTTPS
}

// newProject copies the tree, because the test changes definitions.
func newProject(t *testing.T, e *engine) *project {
	t.Helper()
	p := &project{engine: e, compose: findCompose(t, e), dir: t.TempDir(), port: freePort(t), tlsPort: freePort(t)}
	copyTree(t, p.dir)
	return p
}

// command returns a call of Compose in the project's folder.
func (p *project) command(ctx context.Context, args ...string) *exec.Cmd {
	args = append(p.compose[1:len(p.compose):len(p.compose)], args...)
	c := exec.CommandContext(ctx, p.compose[0], args...)
	c.Dir = p.dir
	c.Env = append(os.Environ(), p.engine.env...)
	c.Env = append(c.Env, "COMPOSE_PROJECT_NAME="+projectName, "GATEPOST_PORT="+p.port, "GATEPOST_TLS_PORT="+p.tlsPort)
	c.WaitDelay = 10 * time.Second
	return c
}

// run calls Compose and returns its output.
func (p *project) run(t *testing.T, args ...string) string {
	t.Helper()
	return output(t, p.command(t.Context(), args...))
}

// up starts the project. When the test ends, it removes the project with its volumes; if the test
// failed, it prints the logs first.
func (p *project) up(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), envoytest.Deadline)
		defer cancel()
		if t.Failed() {
			logs, _ := p.command(ctx, "logs", "--no-color", "--tail", "60").CombinedOutput()
			t.Logf("the containers' logs:\n%s", logs)
		}
		if out, err := p.command(ctx, "--profile", "*", "down", "--volumes", "--rmi", "local", "--timeout", "5").CombinedOutput(); err != nil {
			t.Errorf("taking the project down: %v\n%s", err, out)
		}
	})
	p.run(t, "up", "--build", "--wait")
}

// container is the engine's description of a container.
type container struct {
	State  struct{ ExitCode int }
	Config struct{ User string }

	HostConfig struct {
		ReadonlyRootfs, Privileged bool
		CapAdd, CapDrop            []string
		SecurityOpt                []string
		RestartPolicy              struct{ Name string }
		PortBindings               map[string][]struct{ HostIP string } // port/protocol → published addresses
	}
	NetworkSettings struct {
		Networks map[string]struct{ IPAddress string }
	}
	Mounts []mount
}

// mount is a folder of a container.
type mount struct{ Destination string }

// inspect returns a service's container.
func (p *project) inspect(t *testing.T, service string) container {
	t.Helper()
	var found []container
	out := p.engine.run(t, "inspect", p.run(t, "ps", "--all", "--quiet", service))
	if err := json.Unmarshal([]byte(out), &found); err != nil || len(found) != 1 {
		t.Fatalf("inspecting the container of %s: %d found, %v", service, len(found), err)
	}
	return found[0]
}

// definitions returns the path of the file that is mounted into Gatepost's container, by its
// folder.
func (p *project) definitions() string {
	return filepath.Join(p.dir, "examples/demo/definitions/gatepost.yaml")
}

// findCompose returns the command line of Compose: the docker client's plugin, or a program that is
// built once.
func findCompose(t *testing.T, e *engine) []string {
	t.Helper()
	if e.command(t.Context(), "compose", "version").Run() == nil {
		return []string{e.docker, "compose"}
	}
	built, err := filepath.Abs(root + "/.tools/docker-compose-" + composeVersion)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(built); err != nil {
		t.Log("building Docker Compose, once")
		if out, err := exec.CommandContext(t.Context(), "./build-compose.sh", composeVersion, built).CombinedOutput(); err != nil {
			missing(t, fmt.Sprintf("no `docker compose`, and it cannot be built (%v): install Docker's compose plugin\n%s", err, out))
		}
	}
	return []string{built}
}

// provideImages provides the base images and returns their kind: official ones, if the engine has
// them or can pull them, or else stand-ins, only in a private engine.
func provideImages(t *testing.T, e *engine) string {
	t.Helper()
	redis := imageIn(t, "docker-compose.yml", `image: (redis:\S+)`)
	envoyImage := imageIn(t, "docker-compose.yml", `image: (envoyproxy/\S+)`)
	golang := imageIn(t, "Dockerfile", `FROM (golang:\S+)`)
	static := imageIn(t, "Dockerfile", `FROM (gcr.io/distroless/\S+)`)

	_, noStandIns := os.Stat(standIns)
	if noStandIns == nil && e.private {
		program, err := envoy.Find(os.Getenv("GATEPOST_ENVOY"))
		if err != nil {
			missing(t, err.Error())
		}
		script := exec.CommandContext(t.Context(), standIns)
		script.Env = append(os.Environ(), e.env...)
		script.Env = append(script.Env, "ENVOY="+program,
			"REDIS_IMAGE="+redis, "ENVOY_IMAGE="+envoyImage, "GO_IMAGE="+golang, "STATIC_IMAGE="+static)
		output(t, script)
		giveRedisItsFolder(t, e, redis)
		compiler := exec.CommandContext(t.Context(), "./add-compiler.sh", golang)
		compiler.Env = append(os.Environ(), e.env...)
		output(t, compiler)
		giveGoItsCaches(t, e, golang)
		return "stand-in images"
	}
	for _, image := range []string{redis, envoyImage, golang, static} {
		if e.command(t.Context(), "image", "inspect", image).Run() == nil {
			continue
		}
		if out, err := e.command(t.Context(), "pull", "--quiet", image).CombinedOutput(); err != nil {
			reason := fmt.Sprintf("the engine has no %s and cannot pull it: %s", image, out)
			if noStandIns == nil { // a private engine would have used the stand-ins
				missing(t, reason)
			}
			t.Skip(reason) // even in CI: without a reachable registry there is no remedy
		}
	}
	return "official images"
}

// giveRedisItsFolder makes Redis the owner of /data, as in the official image. A new volume
// inherits the owner.
func giveRedisItsFolder(t *testing.T, e *engine, image string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	// COPY sets the owner only of folders that it creates.
	file := "FROM " + image + "\nUSER 0\nRUN rm -r /data\nCOPY --chown=999:999 data /data\nUSER 999\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	e.run(t, "build", "--quiet", "--tag", image, dir)
}

// giveGoItsCaches puts the modules and the compiled packages of the gateway into the image of the build stage. Without
// them each run compiles Go's library and every module. The commands of the Dockerfile run in any case. Packages that
// they would compile with other flags, or from other sources, have other keys in the cache, and are compiled.
func giveGoItsCaches(t *testing.T, e *engine, image string) {
	t.Helper()
	dir, err := filepath.Abs(root + "/.tools/compose-cache")
	if err != nil {
		t.Fatal(err)
	}
	goCommand := func(env []string, args ...string) string {
		c := exec.CommandContext(t.Context(), "go", args...)
		c.Dir, c.Env = root, append(os.Environ(), env...)
		return output(t, c)
	}
	own := []string{
		"GOMODCACHE=" + dir + "/mod", "GOCACHE=" + dir + "/build", "CGO_ENABLED=0", "GOFLAGS=-modcacherw " + os.Getenv("GOFLAGS"),
		"GOPROXY=file://" + goCommand(nil, "env", "GOMODCACHE") + "/cache/download," + goCommand(nil, "env", "GOPROXY"),
	}
	goCommand(own, "mod", "download")
	goCommand(own, "build", "-trimpath", "-tags", "grpcnotrace,vtprotobuf", "-o", os.DevNull, "./cmd/gatepost")
	file := "FROM " + image + "\nCOPY mod/cache/download /go/pkg/mod/cache/download\nCOPY build /root/.cache/go-build\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(file), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".dockerignore"), []byte("mod\n!mod/cache/download\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	e.run(t, "build", "--quiet", "--tag", image, dir)
}

// imageIn returns the image that a file of the project names.
func imageIn(t *testing.T, file, pattern string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(pattern).FindSubmatch(content)
	if found == nil {
		t.Fatalf("%s names no image like %s", file, pattern)
	}
	return string(found[1])
}

// copyTree copies the project like a clone: without build results, downloads and local files.
func copyTree(t *testing.T, to string) {
	t.Helper()
	leftOut := []string{".git", ".tools", "bin", "gatepost-data"}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch {
		case slices.Contains(leftOut, name) && entry.IsDir():
			return fs.SkipDir
		case slices.Contains(leftOut, name): // a file, as .git is in a worktree
		case entry.IsDir():
			return os.MkdirAll(filepath.Join(to, name), 0o755)
		case entry.Type().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(to, name), content, info.Mode().Perm()|0o444)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

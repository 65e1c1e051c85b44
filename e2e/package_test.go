//go:build linux

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"gatepost/envoy/envoytest"
	"gatepost/testlog"
)

// needPrograms skips a test if this machine lacks one of the programs. With CI=true it fails.
func needPrograms(t *testing.T, programs ...string) {
	t.Helper()
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil && os.Getenv("CI") == "true" {
			t.Fatalf("this test needs %s", program)
		} else if err != nil {
			t.Skipf("this test needs %s, which this machine does not have", program)
		}
	}
}

// TestDebianPackage installs the Debian package into a root of its own, and starts, reloads and
// stops the sidecar as systemd does by its unit. Then it removes the package.
func TestDebianPackage(t *testing.T) {
	t.Parallel()
	needPrograms(t, "dpkg", "dpkg-deb", "systemd-sysusers")
	if os.Getuid() != 0 {
		t.Skip("this test needs root, for a root folder of its own")
	}
	root := privateRoot(t)
	deb := filepath.Join(t.TempDir(), "gatepost.deb")
	runTool(t, "../tools/release", "deb", binary, deb)
	hasFiles(t, runTool(t, "dpkg-deb", "-c", deb))

	root.dpkg("-i", deb)
	runTool(t, binary, "validate", "--strict", root.path("/etc/gatepost/gatepost.yaml"))
	if why := root.check("/usr/bin/gatepost", true); why != "" {
		t.Fatal(why)
	}
	definitions := root.configure(t)
	service := root.start(t, "gatepost")
	envoytest.Start(t, envoytest.Options{GRPC: "unix:" + root.path("/run/gatepost/grpc.sock"), HTTP: "unix:" + root.path("/run/gatepost/http.sock")})
	service.Wants("READY=1")

	orders := envoytest.Upstream(t)
	edited := fmt.Sprintf("%sservices:\n  - {name: orders, path: /orders, authenticate: false, upstreams: [%q]}\n", definitions, orders.URL())
	root.write("/etc/gatepost/gatepost.yaml", edited)
	service.Reload()
	service.Wants("RELOADING=1")
	service.Wants("READY=1\nSTATUS=reloaded")
	listen := strings.TrimSpace(strings.TrimPrefix(definitions, "listen: "))
	answer, err := http.Get("http://" + listen + "/orders")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Errorf("a service that was added before the reload: %s", answer.Status)
	}
	service.Stop()

	root.dpkg("-r", "gatepost")
	root.wants("after the removal", map[string]bool{
		"/usr/bin/gatepost": false, "/usr/lib/systemd/system/gatepost.service": false,
		"/etc/gatepost/gatepost.yaml": true, "/etc/gatepost/gatepost.env": true, "/var/lib/gatepost/tokens.db": true,
	})
	root.dpkg("-i", deb)
	if text := root.read("/etc/gatepost/gatepost.yaml"); text != edited {
		t.Errorf("the definitions were replaced by the next installation:\n%s", text)
	}
	root.dpkg("-P", "gatepost")
	root.wants("after the purge", map[string]bool{"/usr/bin/gatepost": false, "/etc/gatepost": false, "/var/lib/gatepost": false})
}

// hasFiles checks the list of a package's files. dpkg can be configured to install no man pages.
func hasFiles(t *testing.T, list string) {
	t.Helper()
	for _, file := range []string{
		"man/man1/gatepost.1.gz", "bash-completion/completions/gatepost", "_gatepost", "gatepost.fish", "doc/gatepost/copyright",
		"system/gatepost.service", "system/gatepost-run.service", "sysusers.d/gatepost.conf",
	} {
		if !regexp.MustCompile(`(?m)^-rw-r--r-- root/root +[1-9].*/` + file + `$`).MatchString(list) {
			t.Errorf("the package lacks %s:\n%s", file, list)
		}
	}
}

// chroot is a root folder with the programs of this machine in /bin, /sbin and /lib, read-only.
type chroot struct {
	t   *testing.T
	dir string
}

// privateRoot makes a chroot. Its mounts are only seen by the thread of this test, to which the
// goroutine is locked, and by the processes that it starts.
func privateRoot(t *testing.T) *chroot {
	t.Helper()
	dir, err := os.MkdirTemp("", "gatepost-root-") // t.TempDir is too long for a socket path
	must(t, err)
	must(t, os.Chmod(dir, 0o755))
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := syscall.Unshare(syscall.CLONE_FS | syscall.CLONE_NEWNS); err != nil {
		_ = os.Remove(dir)
		t.Skipf("this test needs mounts of its own: %v", err)
	}
	must(t, syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""))
	r := &chroot{t, dir}
	var mounted []string
	t.Cleanup(func() {
		for _, target := range mounted {
			if err := syscall.Unmount(target, 0); err != nil {
				t.Errorf("unmounting %s: %v; %s is not removed", target, err, dir)
				return
			}
		}
		must(t, os.RemoveAll(dir))
	})
	for _, name := range []string{"etc", "run", "tmp", "usr/bin", "var/lib/dpkg/info", "var/lib/dpkg/updates", "dev"} {
		must(t, os.MkdirAll(r.path(name), 0o755))
	}
	for _, name := range []string{"var/lib/dpkg/status", "dev/null"} {
		r.write(name, "")
	}
	r.write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
	r.write("etc/group", "root:x:0:\n")
	sources, err := filepath.Glob("/usr/lib/*-linux-gnu")
	must(t, err)
	for _, source := range append(sources, "/bin", "/sbin", "/lib", "/lib64", "/dev/null") {
		resolved, err := filepath.EvalSymlinks(source)
		if err != nil {
			continue
		}
		target := r.path(source)
		if source != "/dev/null" {
			must(t, os.MkdirAll(target, 0o755))
		}
		must(t, syscall.Mount(resolved, target, "", syscall.MS_BIND, ""))
		mounted = append(mounted, target)
		if source != "/dev/null" {
			must(t, syscall.Mount("", target, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""))
		}
	}
	return r
}

func (r *chroot) path(name string) string { return filepath.Join(r.dir, name) }

func (r *chroot) write(name, text string) {
	r.t.Helper()
	must(r.t, os.WriteFile(r.path(name), []byte(text), 0o644))
}

func (r *chroot) read(name string) string {
	r.t.Helper()
	text, err := os.ReadFile(r.path(name))
	must(r.t, err)
	return string(text)
}

// check returns what is wrong if a file is there, or is not there.
func (r *chroot) check(name string, want bool) string {
	if _, err := os.Stat(r.path(name)); (err == nil) != want {
		return fmt.Sprintf("%s: there is %v, want %v", name, err == nil, want)
	}
	return ""
}

func (r *chroot) wants(when string, files map[string]bool) {
	r.t.Helper()
	for name, want := range files {
		if why := r.check(name, want); why != "" {
			r.t.Errorf("%s: %s", when, why)
		}
	}
}

func (r *chroot) dpkg(args ...string) {
	r.t.Helper()
	r.t.Logf("%s", runTool(r.t, "dpkg", append([]string{"--root=" + r.dir}, args...)...))
}

func runTool(t *testing.T, name string, args ...string) string {
	t.Helper()
	command := exec.Command(name, args...)
	command.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "DEBIAN_FRONTEND=noninteractive")
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// configure gives the installed gateway free addresses, and returns the first line of its
// definitions. Envoy runs outside of the root, so it cannot load the module.
func (r *chroot) configure(t *testing.T) (definitions string) {
	t.Helper()
	definitions = "listen: " + envoytest.Addr(t) + "\n"
	packaged := r.read("/etc/gatepost/gatepost.yaml")
	r.write("/etc/gatepost/gatepost.yaml", strings.Replace(packaged, "listen: 127.0.0.1:5500\n", definitions, 1))
	env := r.read("/etc/gatepost/gatepost.env")
	r.write("/etc/gatepost/gatepost.env", env+"GATEPOST_ADMIN="+envoytest.Addr(t)+"\nGATEPOST_MODULE=off\n")
	return definitions
}

// unit is the settings of a unit file. :: name → values
type unit map[string][]string

func readUnit(text string) unit {
	u := unit{}
	for line := range strings.Lines(text) {
		if name, value, found := strings.Cut(strings.TrimSpace(line), "="); found && !strings.HasPrefix(name, "#") {
			u[name] = append(u[name], value)
		}
	}
	return u
}

// one returns the value of a setting that the unit has once.
func (u unit) one(t *testing.T, name string) string {
	t.Helper()
	if len(u[name]) != 1 {
		t.Fatalf("the unit has %d values of %s", len(u[name]), name)
	}
	return u[name][0]
}

// service is a running unit.
type service struct {
	*notifySocket
	t       *testing.T
	unit    unit
	root    *chroot
	command *exec.Cmd
	log     *testlog.Buffer
}

// start starts a unit in the root as systemd does: its user, folders, environment, command and
// socket for notifications. The sandbox is not applied.
func (r *chroot) start(t *testing.T, name string) *service {
	t.Helper()
	s := &service{t: t, root: r, unit: readUnit(r.read("/usr/lib/systemd/system/" + name + ".service")), log: new(testlog.Buffer)}
	s.notifySocket = listenNotify(t, r.path("/run/notify"))
	uid, gid := r.user(s.unit.one(t, "User"))
	for setting, parent := range map[string]string{"RuntimeDirectory": "/run", "StateDirectory": "/var/lib"} {
		dir := r.path(filepath.Join(parent, s.unit.one(t, setting)))
		mode, err := strconv.ParseUint(s.unit.one(t, setting+"Mode"), 8, 32)
		must(t, err)
		must(t, os.Mkdir(dir, 0o700))
		must(t, os.Chown(dir, int(uid), int(gid)))
		must(t, syscall.Chmod(dir, uint32(mode)))
	}
	if kind := s.unit.one(t, "Type"); kind != "notify" {
		t.Errorf("Type=%s, want notify", kind)
	}
	argv := strings.Fields(s.unit.one(t, "ExecStart"))
	s.command = exec.Command(argv[0], argv[1:]...)
	s.command.Dir = "/"
	s.command.Env = []string{"NOTIFY_SOCKET=/run/notify", "PATH=/usr/bin:/bin"}
	for _, line := range s.unit["Environment"] {
		s.command.Env = append(s.command.Env, strings.Fields(line)...)
	}
	file := strings.TrimPrefix(s.unit.one(t, "EnvironmentFile"), "-")
	for line := range strings.Lines(r.read(file)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			s.command.Env = append(s.command.Env, line)
		}
	}
	s.command.Stdout, s.command.Stderr = s.log, s.log
	s.command.SysProcAttr = &syscall.SysProcAttr{
		Chroot: r.dir, Credential: &syscall.Credential{Uid: uid, Gid: gid},
	}
	must(t, s.command.Start())
	t.Cleanup(func() {
		if s.command.ProcessState == nil {
			_ = s.command.Process.Kill()
			_ = s.command.Wait()
		}
		if t.Failed() {
			t.Logf("the log of the service:\n%s", s.log.Tail(10_000))
		}
	})
	s.Wants("STATUS=not ready: envoy")
	return s
}

// user returns the ids of a user in the root.
func (r *chroot) user(name string) (uid, gid uint32) {
	r.t.Helper()
	line := regexp.MustCompile(`(?m)^` + name + `:[^:]*:(\d+):(\d+):`).FindStringSubmatch(r.read("/etc/passwd"))
	if line == nil {
		r.t.Fatalf("the package has not made the user %s", name)
	}
	for i, id := range []*uint32{&uid, &gid} {
		number, err := strconv.ParseUint(line[i+1], 10, 32)
		must(r.t, err)
		*id = uint32(number)
	}
	return uid, gid
}

// Reload runs ExecReload.
func (s *service) Reload() {
	s.t.Helper()
	argv := strings.Fields(strings.ReplaceAll(s.unit.one(s.t, "ExecReload"), "$MAINPID", strconv.Itoa(s.command.Process.Pid)))
	command := exec.Command(argv[0], argv[1:]...)
	command.SysProcAttr = &syscall.SysProcAttr{Chroot: s.root.dir}
	command.Dir = "/"
	if out, err := command.CombinedOutput(); err != nil {
		s.t.Fatalf("ExecReload: %v\n%s", err, out)
	}
}

// Stop sends SIGTERM, and waits for the end.
func (s *service) Stop() {
	s.t.Helper()
	must(s.t, s.command.Process.Signal(syscall.SIGTERM))
	s.Wants("STOPPING=1")
	if err := s.command.Wait(); err != nil {
		s.t.Errorf("the service ended with %v", err)
	}
}

// TestUnitsAreHardened checks the units with systemd's own tools.
func TestUnitsAreHardened(t *testing.T) {
	t.Parallel()
	serve, run := unitFile(t, "gatepost"), unitFile(t, "gatepost-run")
	for _, unit := range []unit{serve, run} {
		if unit.one(t, "MemoryDenyWriteExecute") != "yes" {
			t.Error("neither Gatepost nor its Envoy needs memory that is writable and executable")
		}
	}
	if run.one(t, "KillMode") != "mixed" {
		t.Error("Envoy would receive SIGTERM too, and end without a drain")
	}
	needPrograms(t, "systemd-analyze")
	root := t.TempDir() // verify looks for the programs of a unit
	for name, source := range map[string]string{
		"usr/bin/gatepost": "/bin/true", "bin/kill": "/bin/true",
		"etc/systemd/system/gatepost.service":     "../deploy/systemd/gatepost.service",
		"etc/systemd/system/gatepost-run.service": "../deploy/systemd/gatepost-run.service",
	} {
		text, err := os.ReadFile(source)
		must(t, err)
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755))
		mode := os.FileMode(0o755)
		if strings.HasSuffix(name, ".service") {
			mode = 0o644 // systemd warns of others
		}
		must(t, os.WriteFile(filepath.Join(root, name), text, mode))
	}
	must(t, os.CopyFS(filepath.Join(root, "usr/lib/systemd/system"), os.DirFS("/usr/lib/systemd/system")))
	for _, name := range []string{"gatepost.service", "gatepost-run.service"} {
		if out := runTool(t, "systemd-analyze", "verify", "--man=no", "--root="+root, name); strings.Contains(out, "gatepost") {
			t.Errorf("systemd-analyze verify: %s", out)
		}
		runTool(t, "systemd-analyze", "security", "--offline=true", "--threshold=20", "../deploy/systemd/"+name)
	}
}

func unitFile(t *testing.T, name string) unit {
	t.Helper()
	text, err := os.ReadFile("../deploy/systemd/" + name + ".service")
	must(t, err)
	return readUnit(string(text))
}

package redistest

import (
	"strings"
	"testing"
)

func TestKillFreezeAndRestart(t *testing.T) {
	s := Start(t, "--appendonly", "yes", "--appendfsync", "always")
	s.Do("SET", "k", "v")
	if got := s.Do("GET", "k"); got != "v" {
		t.Fatalf("read %q", got)
	}
	if n := s.CommandStats()["get"]; n != 1 {
		t.Errorf("GET has %d calls", n)
	}
	s.Freeze()
	if s.answers() {
		t.Error("a frozen server answers")
	}
	s.Thaw()
	Eventually(t, "an answer after the thaw", s.answers)
	s.Kill()
	if s.answers() {
		t.Error("a killed server answers")
	}
	s.Restart()
	if got := s.Do("GET", "k"); got != "v" {
		t.Errorf("after the restart: %q", got)
	}
	s.Shutdown()
}

func TestPasswordIsRequired(t *testing.T) {
	s := StartWithPassword(t, "opensesame")
	if reply, err := s.raw("GET k"); err != nil || !strings.HasPrefix(reply, "-NOAUTH") {
		t.Errorf("%q, %v", reply, err)
	}
}

func TestServerRequiresTLS(t *testing.T) {
	s, _ := StartTLS(t)
	if got := s.Do("PING"); got != "PONG" {
		t.Errorf("answered %q", got)
	}
	s.tls = nil
	if s.answers() {
		t.Error("the server answers without TLS")
	}
}

func TestClusterAndSentinelStart(t *testing.T) {
	nodes := StartCluster(t, 3)
	if got := nodes[1].Do("CLUSTER", "KEYSLOT", "a"); got != "15495" {
		t.Errorf("slot %s", got)
	}
	master := Start(t)
	sentinel := StartSentinel(t, master)
	if got := sentinel.Do("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"); got != "127.0.0.1\n"+master.Port() {
		t.Errorf("the master is %q", got)
	}
}

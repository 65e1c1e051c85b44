package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"

	"gatepost/authz"
	"gatepost/envoy"
	"gatepost/envoy/module"
	"gatepost/tokens/cache/table"
	"gatepost/xds"
)

// envoyModule is how Envoy checks tokens by itself.
type envoyModule struct {
	xds.Module
	table   *table.Table // what Envoy decides; nil: nothing
	without string       // why it decides nothing; empty: it does
	release func() error // removes the table's folder; nil: it is not ours
}

// openModule puts the module and its table into the folder that Gatepost and Envoy share. If that cannot be, Envoy asks about each
// request, and the log says why; with --module on it is an error.
func (s *settings) openModule(ctx context.Context, logger *slog.Logger) (*envoyModule, error) {
	if s.module != "auto" && s.module != "on" && s.module != "off" {
		return nil, usageError{fmt.Errorf("reading --module %q: want auto, on or off", s.module)}
	}
	m, err := s.installModule(ctx)
	switch {
	case err == nil:
		logger.Info("Envoy checks tokens by itself", "module", m.Library)
		return m, nil
	case s.module == "on":
		return nil, fmt.Errorf("having Envoy check tokens by itself (--module on): %w", err)
	case s.module == "auto":
		logger.Warn("Envoy does not check tokens by itself, it asks about each request", "reason", err.Error())
	}
	return &envoyModule{without: err.Error()}, nil
}

func (s *settings) installModule(ctx context.Context) (*envoyModule, error) {
	dir, isSocket := strings.CutPrefix(s.grpc, "unix:")
	switch {
	case s.module == "off":
		return nil, errors.New("--module off")
	case s.redis != "" && s.cache == "off":
		return nil, errors.New("tokens are not answered from memory (--cache off)")
	case !isSocket:
		return nil, errors.New("no folder is shared with Envoy (--grpc is not a Unix socket)")
	}
	if dir = filepath.Dir(dir); !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("the path of the socket in --grpc is not absolute")
	}
	library, err := module.Install(dir)
	if err != nil {
		return nil, err
	}
	m := &envoyModule{Module: xds.Module{Library: library, Table: filepath.Join(dir, "decisions")}}
	if err := s.tryModule(ctx, m.Module); err != nil {
		return nil, err
	}
	if s.envoyPath != "" && m.useSharedMemory() == nil {
		return m, nil
	}
	m.table, err = table.Create(m.Table, table.Decisions, nil)
	return m, err
}

// useSharedMemory makes the table in the system's shared memory, if it has room there: the folder with the sockets may be on a disk.
func (m *envoyModule) useSharedMemory() error {
	dir, release, err := table.Folder()
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "decisions")
	made, err := table.Create(path, table.Decisions, nil)
	if err != nil {
		return errors.Join(err, release())
	}
	m.Table, m.table, m.release = path, made, release
	return nil
}

// close ends what Envoy decides.
func (m *envoyModule) close() error {
	err := m.table.Close()
	if m.release != nil {
		err = errors.Join(err, m.release())
	}
	return err
}

// tryModule has an Envoy of ours load the module before it serves anything. Another's says so itself when it connects.
func (s *settings) tryModule(ctx context.Context, m xds.Module) error {
	if s.envoyPath == "" {
		return nil
	}
	version, err := envoy.CheckVersion(ctx, s.envoyPath)
	if err != nil {
		return err
	}
	if why := module.CheckVersion(version.String()); why != "" {
		return errors.New(why)
	}
	probe, err := m.Probe()
	if err != nil {
		return err
	}
	refused, err := envoy.Validate(ctx, s.envoyPath, probe)
	if err == nil && refused != "" {
		err = fmt.Errorf("the module is refused by Envoy: %s", refused)
	}
	return err
}

// options are xdsOptions with the module.
func (m *envoyModule) options(s *settings) xds.Options {
	options := s.xdsOptions()
	options.Module = m.Module
	return options
}

// decisions is where the checker puts what Envoy may decide by itself; nil: nowhere.
func (s *sidecar) decisions() authz.Decisions {
	if s.module.table == nil {
		return nil
	}
	return s.store
}

package gateway

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gatepost/authz"
	"gatepost/convention"
	"gatepost/envoy"
	"gatepost/envoy/module"
	"gatepost/tokens/cache/table"
	"gatepost/xds"
)

// envoyModule is how Envoy checks tokens by itself.
type envoyModule struct {
	xds.Module
	table   *table.Table // the decisions for Envoy; nil if the module is not used
	without string       // the reason that the module is not used, or ""
	release func() error // removes the table's folder; nil if the folder is not temporary
	folders []*os.File   // which our own Envoy inherits
}

// openModule creates the module and its table in the folder that Gatepost and Envoy share. If that
// fails, Envoy sends a check for each request, and the reason is logged; with ModuleOn it is an
// error.
func openModule(ctx context.Context, c Config) (*envoyModule, error) {
	m, err := installModule(ctx, c)
	switch {
	case err == nil:
		c.Logger.Info("Envoy checks tokens by itself", "module", m.Library)
		return m, nil
	case c.Module == ModuleOn:
		return nil, fmt.Errorf("having Envoy check tokens by itself (--module on): %w", err)
	case c.Module == ModuleAuto:
		c.Logger.Warn(convention.MessageWithoutModule, "reason", err.Error())
	}
	return &envoyModule{without: err.Error()}, nil
}

func installModule(ctx context.Context, c Config) (*envoyModule, error) {
	dir, isSocket := strings.CutPrefix(c.GRPC, "unix:")
	switch {
	case c.Module == ModuleOff:
		return nil, errors.New("--module off")
	case c.Redis != nil && c.NoCache:
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
	if err := tryModule(ctx, c.Envoy, m.Module); err != nil {
		return nil, err
	}
	if c.Envoy == "" {
		m.table, err = table.Create(m.Table, table.Decisions, nil)
		return m, err
	}
	if m.useSharedMemory() != nil {
		if m.table, err = table.Create(m.Table, table.Decisions, nil); err != nil {
			return nil, err
		}
	}
	if err := m.inherit(); err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

// sampleEvery is how often the last use of a token is kept at the most; 0: the default. With the module, it is shorter
// than the time between two checks of a token in use. So each of them counts, and the last use is never older than a
// minute.
func (m *envoyModule) sampleEvery() time.Duration {
	if m.table == nil {
		return 0
	}
	return table.MinLifetime - 5*time.Second
}

// inherit passes the folders of the files to the managed Envoy as descriptors. The names of the
// folders are random; if they were in the configuration, its version would change with each start.
func (m *envoyModule) inherit() error {
	for _, path := range []*string{&m.Library, &m.Table} {
		folder, err := os.Open(filepath.Dir(*path))
		if err != nil {
			return fmt.Errorf("opening a folder for Envoy: %w", err)
		}
		*path = fmt.Sprintf("/proc/self/fd/%d/%s", envoy.FirstFile+len(m.folders), filepath.Base(*path))
		m.folders = append(m.folders, folder)
	}
	return nil
}

// useSharedMemory makes the table in the system's shared memory, if it has room there: the folder
// with the sockets may be on a disk.
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
	for _, folder := range m.folders {
		err = errors.Join(err, folder.Close())
	}
	if m.release != nil {
		err = errors.Join(err, m.release())
	}
	return err
}

// tryModule makes the managed Envoy load the module before it serves. An external Envoy reports its
// version when it connects.
func tryModule(ctx context.Context, path string, m xds.Module) error {
	if path == "" {
		return nil
	}
	version, err := envoy.CheckVersion(ctx, path)
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
	refused, err := envoy.Validate(ctx, path, probe)
	if err == nil && refused != "" {
		err = fmt.Errorf("the module is refused by Envoy: %s", refused)
	}
	return err
}

// decisions returns the table in which the checker stores decisions for Envoy, or nil.
func (g *Gateway) decisions() authz.Decisions {
	if g.module.table == nil {
		return nil
	}
	return g.store
}

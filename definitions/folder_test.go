package definitions

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
)

// writeFolder writes files, given by name, into a new folder.
func writeFolder(t *testing.T, files map[string]string) (folder string) {
	t.Helper()
	folder = filepath.Join(t.TempDir(), "conf")
	must(t, os.Mkdir(folder, 0o700))
	for name, text := range files {
		writeFile(t, filepath.Join(folder, name), text)
	}
	return folder
}

// TestProblemsOfFolders loads the files of each archive as one folder and compares all problems with "problems".
func TestProblemsOfFolders(t *testing.T) {
	for _, path := range archives(t, "testdata/folders") {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive := readArchive(t, path)
			files := map[string]string{}
			for _, file := range archive.Files {
				if file.Name != "problems" {
					files[file.Name] = string(file.Data)
				}
			}
			folder := writeFolder(t, files)
			d, err := Load(folder)
			got := "good\n"
			if err != nil {
				got = err.Error() + "\n"
			} else {
				for _, note := range slices.Concat(d.Warnings(), d.Notes()) {
					got += note.String() + "\n"
				}
			}
			compareGolden(t, path, archive, "problems", strings.ReplaceAll(got, folder, "conf"))
		})
	}
}

const (
	teamA = "services:\n  - name: orders\n    path: /orders\n    upstreams: [\"http://orders\"]\n"
	teamB = "# team B\n\nservices:\n  - name: items\n    path: /items\n    upstreams: [\"http://items\"]\n"
	ofAll = "listen: 127.0.0.1:7000\norigins: [\"https://shop.example\"]\n"
)

func mustLoad(t *testing.T, path string) *Definitions {
	t.Helper()
	d, err := Load(path)
	must(t, err)
	return d
}

func TestFolderHasTheServicesOfAllFilesAndTheSettingsOfOne(t *testing.T) {
	folder := writeFolder(t, map[string]string{"orders.yaml": teamA, "items.yml": teamB, "gateway.yaml": ofAll, ".hidden": "not: YAML: at all", "old.yaml~": ofAll, "#new.yaml#": ofAll})
	d := mustLoad(t, folder)
	if got := d.Gateway.Listen.Port(); got != 7000 {
		t.Errorf("the port is %d, want 7000", got)
	}
	places := map[string]int{}
	for i, s := range d.Gateway.Services {
		file, line := d.Place(i)
		places[s.Name+" "+file] = line
	}
	if want := map[string]int{"orders " + folder + "/orders.yaml": 2, "items " + folder + "/items.yml": 4}; !reflect.DeepEqual(places, want) {
		t.Errorf("the services are at %v, want %v", places, want)
	}
}

// The names of the files have no meaning beside the order of the services, which has none.
func TestOrderOfTheFilesHasNoMeaning(t *testing.T) {
	var first *Gateway
	for _, names := range [][3]string{{"a", "b", "c"}, {"a", "c", "b"}, {"b", "a", "c"}, {"b", "c", "a"}, {"c", "a", "b"}, {"c", "b", "a"}} {
		d := mustLoad(t, writeFolder(t, map[string]string{names[0] + ".yaml": teamA, names[1] + ".yaml": teamB, names[2] + ".yaml": ofAll}))
		slices.SortFunc(d.Gateway.Services, func(a, b *Service) int { return strings.Compare(a.Name, b.Name) })
		if first == nil {
			first = d.Gateway
		} else if !reflect.DeepEqual(first, d.Gateway) {
			t.Errorf("files named %v become %v, want %v", names, d.Gateway.Message(), first.Message())
		}
	}
}

// The text of a folder is what the last good definitions and a revision in Redis keep of it.
func TestTextOfAFolderIsAFileOfTheSameMeaning(t *testing.T) {
	var texts [][]byte
	for _, path := range archives(t, "testdata/good") {
		texts = append(texts, readArchive(t, path).Files[0].Data)
	}
	texts = append(texts, []byte("services: []\n"), []byte(shop("a", "b", "c")))
	for _, text := range texts {
		d := mustLoad(t, writeFolder(t, map[string]string{"all.yaml": string(text)}))
		again, err := Parse("again.yaml", d.Text)
		must(t, err)
		if want := mustParse(t, string(text)).Gateway; !reflect.DeepEqual(want, d.Gateway) || !reflect.DeepEqual(want, again.Gateway) {
			t.Errorf("a file becomes\n%v\nits folder\n%v\nand the text of that\n%v", want.Message(), d.Gateway.Message(), again.Gateway.Message())
		}
		lastGood := LastGood{Dir: t.TempDir()}
		must(t, lastGood.Save(d))
		if kept, err := lastGood.Load(); err != nil || kept.Hash() != d.Hash() || kept.Name != d.Name {
			t.Errorf("what was kept of the folder is %v, %v", kept, err)
		}
	}
}

func TestServicesOfAFolderCanBeRestored(t *testing.T) {
	folder := writeFolder(t, map[string]string{"a.yaml": teamA, "b.yaml": teamB, "c.yaml": ofAll})
	before := mustLoad(t, folder)
	writeFile(t, filepath.Join(folder, "b.yaml"), strings.Replace(teamB, "http://items", "http://broken", 1))
	restored, rest := mustLoad(t, folder).Restore([]string{"items"}, before)
	if len(rest) > 0 || restored.service("items").Upstreams[0].Host != "items" || restored.service("orders") == nil || restored.Gateway.Listen != before.Gateway.Listen {
		t.Errorf("restored to %v without %v", restored.Gateway.Message(), rest)
	}
}

func TestFolderThatCannotBeReadIsAnError(t *testing.T) {
	for name, spoil := range map[string]func(folder string) error{
		"has no definitions files":  func(folder string) error { return os.Remove(filepath.Join(folder, "a.yaml")) },
		"is a directory":            func(folder string) error { return os.Mkdir(filepath.Join(folder, "b.yaml"), 0o700) },
		"does not end in .yaml":     func(folder string) error { return os.WriteFile(filepath.Join(folder, "README.md"), nil, 0o600) },
		"no such file or directory": func(folder string) error { return os.Symlink("nothing", filepath.Join(folder, "b.yaml")) },
		"are together larger than": func(folder string) error {
			return os.WriteFile(filepath.Join(folder, "b.yaml"), make([]byte, MaxSize), 0o600)
		},
		"the file is empty":          func(folder string) error { return os.WriteFile(filepath.Join(folder, "b.yaml"), nil, 0o600) },
		"the file is not UTF-8 text": func(folder string) error { return os.WriteFile(filepath.Join(folder, "b.yaml"), []byte("\xff"), 0o600) },
	} {
		folder := writeFolder(t, map[string]string{"a.yaml": teamA})
		must(t, spoil(folder))
		if _, err := Load(folder); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), folder) {
			t.Errorf("the error is %v, want one that says %q and names the folder", err, name)
		}
	}
}

// swap makes the folder ..data of a mounted ConfigMap point to a new version, as the kubelet does.
func swap(t *testing.T, mount, version string, files map[string]string) {
	t.Helper()
	must(t, os.Mkdir(filepath.Join(mount, version), 0o700))
	for name, text := range files {
		writeFile(t, filepath.Join(mount, version, name), text)
	}
	must(t, os.Symlink(version, filepath.Join(mount, "..data_tmp")))
	must(t, os.Rename(filepath.Join(mount, "..data_tmp"), filepath.Join(mount, "..data")))
	for name := range files {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(mount, name)); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
}

func TestWatcherFollowsAMountedConfigMap(t *testing.T) {
	mount := t.TempDir()
	swap(t, mount, "..v1", map[string]string{"a.yaml": teamA, "z.yaml": ofAll})
	f := follow(t, mount, byEvent, nil)
	f.wants("good orders")
	swap(t, mount, "..v2", map[string]string{"a.yaml": teamA, "b.yaml": teamB, "z.yaml": ofAll})
	f.wants("good orders items")
	swap(t, mount, "..v3", map[string]string{"a.yaml": "services: 1\n", "b.yaml": teamB, "z.yaml": ofAll})
	f.wants("bad " + mount + "/a.yaml:1:11: services: is")
	swap(t, mount, "..v4", map[string]string{"a.yaml": teamA, "b.yaml": teamB, "z.yaml": ofAll})
	f.wants("good orders items")
}

func TestWatcherSeesAFileOfAFolderWrittenAddedRenamedAndRemoved(t *testing.T) {
	folder := writeFolder(t, map[string]string{"a.yaml": teamA})
	f := follow(t, folder, byEvent, nil)
	f.wants("good orders")
	writeFile(t, filepath.Join(folder, "b.yaml~"), teamB)
	must(t, os.Rename(filepath.Join(folder, "b.yaml~"), filepath.Join(folder, "b.yaml")))
	f.wants("good orders items")
	must(t, os.Rename(filepath.Join(folder, "b.yaml"), filepath.Join(folder, "0.yaml")))
	f.wants("good items orders")
	must(t, os.Remove(filepath.Join(folder, "a.yaml")))
	f.wants("good items")
	file, err := os.OpenFile(filepath.Join(folder, "0.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = file.WriteString("  - {name: stock, path: /stock, upstreams: [\"http://stock\"]}\n")
	must(t, errors.Join(err, file.Close()))
	f.wants("good items stock")
	must(t, os.RemoveAll(folder))
	f.wants("bad reading definitions")
}

func TestWatcherSeesAFileBecomeAFolder(t *testing.T) {
	f := started(t, byPoll)
	must(t, os.Remove(f.path))
	must(t, os.Mkdir(f.path, 0o700))
	writeFile(t, filepath.Join(f.path, "b.yaml"), teamB)
	for want := "good items"; f.next(want) != want; { // before it is complete it may be found empty
	}
}

func TestWatcherStartsFromTheFolderThatWasLoaded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		folder := writeFolder(t, map[string]string{"a.yaml": teamA, "b.yaml": teamB})
		var reports []*Definitions
		current := mustLoad(t, folder)
		w := newWatcher(t, WatcherConfig{
			Path: folder, Current: current,
			OnChange: func(_ context.Context, d *Definitions) { reports = append(reports, d) },
			OnError:  func(err error) { t.Error(err) },
		})
		w.look(t.Context(), true)
		if len(reports) > 0 {
			t.Fatalf("reported %v, want nothing", reports)
		}
		writeFile(t, filepath.Join(folder, "a.yaml"), strings.Replace(teamA, "http://orders", "http://other", 1))
		w.look(t.Context(), true)
		if len(reports) != 1 {
			t.Fatalf("%d reports, want one", len(reports))
		}
		if was, is := current.service("items"), reports[0].service("items"); was != is {
			t.Error("an unchanged service has another pointer")
		}
		if reports[0].service("orders").Upstreams[0].Host != "other" {
			t.Error("the change was not read")
		}
	})
}

// FuzzFolder holds a folder of two files to what the same services in one file mean.
func FuzzFolder(f *testing.F) {
	f.Add(teamA, teamB)
	f.Add(ofAll, teamB)
	f.Add("services: []\nlisten: :1", "listen: :2")
	f.Add("services: []\nservices: []", "<<: {}\nx: &a {}\nservices: [*a]")
	for _, path := range archives(f, "testdata/folders") {
		files := readArchive(f, path).Files
		f.Add(string(files[0].Data), string(files[min(1, len(files)-1)].Data))
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		lines := map[string]int{"a.yaml": strings.Count(a, "\n") + 1, "b.yaml": strings.Count(b, "\n") + 1}
		one := source{path: "conf", files: []folderFile{{path: "a.yaml", text: []byte(a)}, {path: "b.yaml", text: []byte(b), linesBefore: lines["a.yaml"]}}}
		d, err := one.parse(nil)
		var problems Problems
		if err != nil && !errors.As(err, &problems) {
			t.Fatalf("an error without problems: %v", err)
		}
		for _, p := range problems {
			if p.Line < 1 || p.Line > lines[p.File] || p.What == "" {
				t.Fatalf("a problem that cannot be found: %#v", p)
			}
		}
		if err != nil {
			return
		}
		again, err := Parse("again.yaml", d.Text)
		if err != nil || !reflect.DeepEqual(d.Gateway, again.Gateway) {
			t.Fatalf("becomes %v, and its text %v, %v", d.Gateway.Message(), again, err)
		}
	})
}

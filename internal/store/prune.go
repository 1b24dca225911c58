package store

import "github.com/connected-registry/connected-registry/internal/registry"

// rows reads all manifests of the repository. Errors: errDamaged.
func (r *repoTx) rows() (map[registry.Digest]manifestRow, error) {
	rows := map[registry.Digest]manifestRow{}
	err := r.manifests.ForEach(func(k, v []byte) error {
		d, ok := keyDigest(k)
		if !ok {
			return errDamaged
		}
		row, err := decodeManifest(v)
		rows[d] = row
		return err
	})
	return rows, err
}

// prune removes those of the given manifests that nothing needs, and what only they needed.
func (r *repoTx) prune(roots []registry.Digest) (removed int, err error) {
	rows, err := r.rows()
	if err != nil {
		return 0, err
	}
	return r.pruneRows(roots, rows)
}

// pruneRows is prune over rows that were read already; it takes out of rows what it removes. A manifest is needed when
// a client pushed it, it was fetched by digest, a tag points at it, an index has it, or it refers to a subject that is
// here. With an index go its children, with a subject its referrers, unless they are needed otherwise.
func (r *repoTx) pruneRows(roots []registry.Digest, rows map[registry.Digest]manifestRow) (removed int, err error) {
	tagged := map[registry.Digest]bool{}
	err = r.tags.ForEach(func(_, v []byte) error {
		row, err := decodeTag(v)
		tagged[row.digest] = true
		return err
	})
	if err != nil {
		return 0, err
	}
	locks, fixed := r.locks(), map[registry.Digest]bool(nil)
	if locks != nil {
		if fixed = r.fixed(locks); fixed == nil {
			return 0, nil // the repository is locked
		}
	}
	parents, referrers := map[registry.Digest]int{}, map[registry.Digest][]registry.Digest{}
	for d, row := range rows {
		for _, c := range row.children {
			parents[c.digest]++
		}
		if row.subject != "" {
			referrers[row.subject] = append(referrers[row.subject], d)
		}
	}
	for queue := roots; len(queue) > 0; queue = queue[1:] {
		d := queue[0]
		row, ok := rows[d]
		if !ok || row.pushed || row.pinned || tagged[d] || parents[d] > 0 || fixed[d] {
			continue
		}
		if _, kept := rows[row.subject]; kept && row.subject != "" {
			continue
		}
		if err := r.removeManifest(d, row); err != nil {
			return removed, err
		}
		removed++
		delete(rows, d)
		for _, c := range row.children {
			parents[c.digest]--
			queue = append(queue, c.digest)
		}
		queue = append(queue, referrers[d]...)
	}
	return removed, nil
}

// hasParent reports whether an index of the repository has the manifest.
func (r *repoTx) hasParent(d registry.Digest) (found bool) {
	_ = r.manifests.ForEach(func(_, v []byte) error {
		row, err := decodeManifest(v)
		if err != nil {
			return nil
		}
		for _, c := range row.children {
			found = found || c.digest == d
		}
		return nil
	})
	return found
}

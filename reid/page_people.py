"""The page (reid.page): who is in the index. People with their pictures, renamed and removed."""

import threading

from reid.page_html import file, form, key, named, to, unkey
from reid.page_html import text as field
from reid.service_door import Refused

PEOPLE, ENTRIES, FACES = 24, 60, 4  # of a page; pictures of a person on the list
PIECE = 4096  # entries that are read at a time
WRITES = threading.Lock()  # of two who rename at a time, one waits


def everybody(index, pictures, part=''):
    """[(name, entries, FACES of them)] whose name has a part, in order of the alphabet."""
    found, there, after, part = {}, set(), 0, part.casefold()
    while some := index.find(after=after, limit=PIECE):
        for entry in some:
            count, faces = found.get(entry.name, (0, []))
            found[entry.name] = count + 1, faces if len(faces) == FACES else [*faces, entry]
        there.update(entry.id for entry in some)
        after = some[-1].id
    pictures.sweep(there, after)
    wanted = [(name, *rest) for name, rest in found.items() if part in name.casefold()]
    return sorted(wanted, key=lambda one: (one[0].casefold(), one[0]))


def rename(index, pictures, old, new):
    """-> how many entries. An index has no way to change one: each is added anew, then the old one is removed. If the
    power fails in between, some are there under both names, and it may be done again."""
    count, last = 0, None
    with WRITES:
        while some := index.find(name=old, after=last, limit=PIECE):
            last = some[-1].id
            fresh = [{**entry._asdict(), 'name': new} for entry in some]
            for entry in fresh:
                del entry['id']
            ids = index.add(fresh, index.vectors([entry.id for entry in some]))
            for entry, id in zip(some, ids, strict=True):
                pictures.move(entry, entry._replace(id=id))
            index.remove([entry.id for entry in some])
            count += len(some)
    return count


def remove(index, pictures, entries):
    index.remove([entry.id for entry in entries])
    pictures.forget(entries)


def routes(api, answers, work, pictures):
    index, route = work.index, answers.route

    @route(api, '/page/people')
    async def people(request):
        part, page = request.query_params.get('q', '')[:200], count(request.query_params.get('page'))
        found = await work.alone(everybody, index, pictures, part)
        pages = max(1, -(-len(found) // PEOPLE))
        page = min(page, pages)
        some = found[(page - 1) * PEOPLE : page * PEOPLE]
        values = {'people': some, 'part': part, 'page': page, 'pages': pages, 'total': len(found)}
        return answers.page(request, 'people.html', **values, entries=sum(number for _, number, _ in found))

    @route(api, '/page/person')
    async def person(request):
        return answers.page(request, 'person.html', **await shown(request))

    async def shown(request):
        name, after = unkey(request.query_params.get('who', '')), count(request.query_params.get('after'), 0)
        found = await work.alone(lambda: index.find(name=name, after=after, limit=ENTRIES + 1))
        if not found and not after:
            raise Refused(404, 'there is nobody of this name any more')
        following = found[ENTRIES - 1].id if len(found) > ENTRIES else None
        return {'name': name, 'entries': found[:ENTRIES], 'after': after, 'following': following}

    @route(api, '/page/rename', 'POST')
    async def renamed(request):
        sent = await form(request)
        old, new = unkey(field(sent, 'who')), named(field(sent, 'name'))
        if old != new and not await work.alone(rename, index, pictures, old, new):
            raise Refused(404, 'there is nobody of this name any more')
        return to('/page/person', who=key(new), said='said_renamed')

    @route(api, '/page/remove', 'GET')
    async def asked(request):
        """Whether to do it. No script is needed to be asked."""
        if 'id' in request.query_params:
            (entry,) = await one(request.query_params['id'])
            return answers.page(request, 'remove.html', name=entry.name, entries=[entry], id=entry.id, total=1)
        name = unkey(request.query_params.get('who', ''))
        found = await work.alone(lambda: index.find(name=name))
        if not found:
            raise Refused(404, 'there is nobody of this name any more')
        return answers.page(request, 'remove.html', name=name, entries=found[:12], id=None, total=len(found))

    @route(api, '/page/remove', 'POST')
    async def removed(request):
        sent = await form(request)
        if 'id' in sent:
            found = await one(field(sent, 'id'))
        else:
            name = unkey(field(sent, 'who'))
            found = await work.alone(lambda: index.find(name=name))
        await work.alone(remove, index, pictures, found)
        if 'id' in sent and await work.alone(lambda: index.find(name=found[0].name, limit=1)):
            return to('/page/person', who=key(found[0].name), said='said_removed')
        return to('/page/people', said='said_removed')

    async def one(text):
        number = count(text, 0)
        found = await work.alone(lambda: index.find(ids=[number]))
        if not found:
            raise Refused(404, f'there is no entry {number}')
        return found

    @route(api, '/page/thumb/{id}')
    async def thumb(request):
        found = await one(request.path_params['id'])
        path = await work.alone(pictures.thumb_of, found[0])
        return file(path, 'image/jpeg') if path else to('/page/files/nobody.svg')


def count(text, least=1):
    """A whole number of an address; what is none is the least."""
    fits = text and text.isascii() and text.isdecimal() and len(text) <= 18
    return max(least, int(text)) if fits else least

"""The page of the service: for those who use it without a command line.

    pages = Pages(folder, detectors)      # a folder of its own, for pictures; {name: load(least) -> detect}
    api = service.app(embedder, index, limits, page=pages)

    /page/people      who is in the index: pictures, counts; to rename and to remove        page_people.py
    /page/register    pictures -> boxes of people -> a name -> entries                      page_search.py
    /page/clip        a video -> a frame, which goes on from there                          page_clip.py
    /page/search      a picture -> a person in it -> who it is, as a table and as CSV       page_search.py
    /page/video       videos, pictures -> who was seen when; in a queue                     page_videos.py, page_jobs.py
                                                                              page_looking.py, page_timeline.py
    /page/settings    threshold, detector, tracker, language, colours: a cookie; device     here; page_choice.py,
                      and engine: from the next start on                                    page_start.py
    /page/login       the token of the service, if it has one                               page_login.py

page_pictures.py keeps pictures, page_html.py answers, and page_texts.py has all that is said.

HTML made here from the templates in reid/web, a style sheet, and a short script that all works without: nothing is
built, and nothing comes from another host. The functions underneath are those of the API. Every form is
answered by "see other", so a page may be loaded again; what is under way lies in the folder, so the service may be
started again.
"""

import sqlite3
from pathlib import Path

from reid import page_clip, page_login, page_people, page_search, page_videos
from reid.page_choice import chosen, kept
from reid.page_html import WEB, Answers, file, form, text, to
from reid.page_jobs import Jobs
from reid.page_pictures import Pictures
from reid.problem import Problem
from reid.service_door import Refused

FILES = {'style.css': 'text/css', 'page.js': 'text/javascript', 'nobody.svg': 'image/svg+xml'}
VIDEO_BYTES = 500 * 10**6
PATIENCE, PACE = 20, 5e5  # times as long as for pictures at least; bytes a second that are slow enough


class Pages:
    def __init__(self, folder, detectors, reads=True, video_bytes=VIDEO_BYTES, start=None):
        """reads: pictures of this machine that entries speak of may be shown, to all who may enter. start: what may be
        chosen for the next start of the service, reid.page_start.Start."""
        self.folder, self.detectors = Path(folder), {**detectors, 'none': None}
        self.reads, self.video_bytes, self.start, self.parts = reads, video_bytes, start, []

    def large(self, limits):
        """{address: limits}, where more is taken than elsewhere; it goes to the disk."""
        large = dict.fromkeys(('video', 'clip'), self.video_bytes) | {'register': page_search.FILES * limits.bytes}
        patience = PATIENCE * limits.patience
        return {f'/page/{name}': limits._replace(bytes=most, patience=max(patience, most / PACE))
                for name, most in large.items()}  # fmt: skip

    def into(self, api, work, sessions=None):
        """Add them to an application. sessions: of those who have logged in, where there is a token."""
        most = {address.rpartition('/')[2]: limits.bytes for address, limits in self.large(work.limits).items()}
        answers = Answers(self.detectors, str(work.embedder.about['run']), {'search': work.limits.bytes, **most})
        try:
            self.parts = [taken(self.folder)]
            pictures = Pictures(self.folder, work, self.detectors, self.reads)
            jobs = Jobs(self.folder, work, pictures)
        except (OSError, sqlite3.OperationalError) as error:
            raise Problem(
                f'{self.folder} cannot be written to ({error}): --page_dir DIR names another folder'
            ) from None
        self.parts = [jobs, pictures, *self.parts]
        answers.templates.globals['guarded'] = sessions is not None
        if sessions is not None:
            page_login.routes(api, answers, sessions)
        own_routes(api, answers, work, self.start)
        page_people.routes(api, answers, work, pictures)
        page_search.routes(api, answers, work, pictures)
        page_clip.routes(api, answers, work, pictures)
        page_videos.routes(api, answers, work, pictures, jobs)

        @answers.route(api, '/page/{rest:path}', 'GET', 'POST', 'PUT', 'DELETE')
        async def nowhere(request):
            raise Refused(404, 'there is no such page')

    def close(self):
        for part in self.parts:
            part.close()


def taken(folder):
    """The folder is ours alone until this is closed, or the process ends, in whatever way: SQLite sees to it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = sqlite3.connect(folder / 'lock.db', timeout=0, isolation_level=None, check_same_thread=False)
    try:
        lock.execute('begin exclusive')
    except sqlite3.OperationalError as error:
        lock.close()
        if 'locked' not in str(error):
            raise
        way = 'end that one, or --page_dir DIR names another folder'
        raise Problem(f'{folder} is used by another service: {way}') from None
    return lock


def own_routes(api, answers, work, start):
    bounds = work.embedder.bounds

    @answers.route(api, '/')
    async def front(request):
        return to('/page/people')

    @answers.route(api, '/page')
    async def entrance(request):
        return to('/page/people')

    @answers.route(api, '/page/files/{name}')
    async def of_ours(request):
        name = request.path_params['name']
        if name not in FILES:
            raise Refused(404, 'there is no such file')
        return file(WEB / name, FILES[name])

    @answers.route(api, '/page/settings', 'GET')
    async def settings(request):
        own = None if isinstance(bounds, Problem) else bounds['same']
        return answers.page(request, 'settings.html', detectors=list(answers.detectors), own=own, start=start)

    @answers.route(api, '/page/settings', 'POST')
    async def changed(request):
        sent = await form(request)
        given = {name: text(sent, name) for name in sent}
        accepted = request.headers.get('accept-language', '')
        response = to('/page/settings', said='said_settings')
        response.set_cookie(**kept(chosen(given, accepted, answers.detectors)))
        return response

    @answers.route(api, '/page/settings/start', 'POST')
    async def for_later(request):
        sent = await form(request)
        if start is None:
            raise Refused(404, 'nothing can be chosen here for the next start of the service')
        await work.alone(start.keep, {name: text(sent, name) for name in sent})
        return to('/page/settings', said='said_start')
